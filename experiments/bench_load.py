"""Loading a checkpoint: seconds and peak memory, beside transformers, each load in a fresh process.

    python -m experiments.bench_load
    python -m experiments.bench_load --model=POLICY --dtype=bfloat16 --peer=transformers --peer_python=INTERPRETER

Without --model a checkpoint with random weights is written first (--layers, --width, ... give its shape). What is held
beyond the parameters' own bytes is measured against a process that has imported everything and loaded nothing.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from experiments import bench_model, common
from experiments.bench_process import Worker, in_turns, machine, median_of, ratio_of, table

FLAGS = flags.FLAGS
MIB = 2**20


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("model", None, "folder of a checkpoint; default: random weights made on the spot")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "dtype to load in (and to write it in)")
    flags.DEFINE_enum("peer", "transformers", ["none", "transformers"], "what to compare with")
    flags.DEFINE_string("peer_python", None, "interpreter that has the peer; default: this one")
    flags.DEFINE_integer("cycles", 3, "times that both are run in the order A B B A", lower_bound=1)
    define_shape_flags(vocab_size=32_768, width=1024, layers=12)
    flags.DEFINE_string("output", None, "JSON file for all that was measured")
    common.define_terminal_flags()


def define_shape_flags(vocab_size: int, width: int, layers: int) -> None:
    """The shape of a model of random weights."""
    flags.DEFINE_integer("vocab_size", vocab_size, "vocabulary of the random checkpoint", lower_bound=32)
    flags.DEFINE_integer("width", width, "its hidden size, a multiple of 32", lower_bound=32)
    flags.DEFINE_integer("layers", layers, "its layers", lower_bound=1)
    flags.DEFINE_enum(
        "shape", None, list(bench_model.SHAPES), "instead of these three, the shape of a published model"
    )


def given_shape() -> bench_model.Shape:
    """The shape flags: heads of 32, half as many key heads, an inner width of four times the width."""
    from caspo_jax.errors import UserError

    if FLAGS.shape:
        return bench_model.SHAPES[FLAGS.shape]
    heads, rest = divmod(FLAGS.width, 32)
    if rest:
        raise UserError(f"--width={FLAGS.width}: give a multiple of 32")
    return bench_model.Shape(
        vocab_size=FLAGS.vocab_size,
        hidden_size=FLAGS.width,
        intermediate_size=4 * FLAGS.width,
        num_layers=FLAGS.layers,
        num_heads=heads,
        num_kv_heads=heads // 2 if heads % 2 == 0 else heads,
    )


def largest_tensor(folder: Path, dtype: str) -> int:
    """Bytes of the largest tensor of a checkpoint, in the dtype that it is loaded in."""
    from caspo_jax.models.checkpoint import Checkpoint

    with Checkpoint(folder) as checkpoint:
        sizes = [_entries(checkpoint.shape(name)) for name in checkpoint.names]
    return max(sizes) * (4 if dtype == "float32" else 2)


def _entries(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def main() -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as temporary:
        if FLAGS.model:
            folder = common.require_folder(FLAGS.model, "model")
        else:
            folder = bench_model.make_checkpoint(given_shape(), Path(temporary) / "model", FLAGS.dtype)
        measured = measure(folder)
        report(measured, largest_tensor(folder, FLAGS.dtype))


def measure(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All runs by side."""
    interpreters = {"caspo_jax": sys.executable}
    if FLAGS.peer != "none":
        interpreters[FLAGS.peer] = FLAGS.peer_python or sys.executable

    def load(name: str) -> dict[str, Any]:
        # The allocator as a user has it: a tuned one keeps what is freed, which would count as memory.
        arguments = [name, str(folder), FLAGS.dtype]
        with Worker(interpreters[name], "experiments.bench_load_worker", arguments, tuned=False) as worker:
            return worker.ask(do="load")

    sides = {name: (lambda name=name: load(name)) for name in interpreters}
    for name in sides:
        sides[name]()  # the file is in the system's cache for all that follow
    with common.Progress(2 * FLAGS.cycles * len(sides), "bench_load", unit="load") as progress:
        return in_turns(sides, FLAGS.cycles, lambda _: progress.update())


def report(measured: dict[str, list[dict[str, Any]]], largest: int) -> None:
    """The table, the JSON and the closing summary."""
    rows = []
    for name, runs in measured.items():
        parameters = median_of(runs, "parameter_bytes")
        beyond = median_of(runs, "peak_growth") - parameters
        rows.append(
            [
                name,
                f"{median_of(runs, 'seconds'):.2f}",
                f"{parameters / MIB:.0f}",
                f"{median_of(runs, 'peak_growth') / MIB:.0f}",
                f"{beyond / MIB:.0f}",
            ]
        )
    common.say(table(["", "seconds", "parameters MiB", "peak MiB", "beyond parameters MiB"], rows))
    ours = measured["caspo_jax"]
    beyond = median_of(ours, "peak_growth") - median_of(ours, "parameter_bytes")
    summary: dict[str, Any] = {
        "beyond_parameters_mib": round(beyond / MIB, 1),
        "largest_tensor_mib": round(largest / MIB, 1),
    }
    if FLAGS.peer != "none":
        summary["seconds_ratio"] = round(ratio_of(ours, measured[FLAGS.peer], "seconds")["median"], 3)
        summary["peak_ratio"] = round(ratio_of(ours, measured[FLAGS.peer], "peak_growth")["median"], 3)
    if FLAGS.output:
        from caspo_jax.store import write_json

        shape = dataclasses.asdict(given_shape()) if not FLAGS.model else FLAGS.model
        write_json(
            FLAGS.output,
            {"model": shape, "dtype": FLAGS.dtype, "machine": machine(), **summary, "runs": measured},
        )
    common.closing("loading (ratios: peer over caspo_jax)", summary)


if __name__ == "__main__":
    define_flags()
    common.run(main)
