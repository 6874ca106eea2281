"""Loading a checkpoint: seconds and peak memory, each load in a fresh process; with --peer beside transformers.

    python -m experiments.bench_load
    python -m experiments.bench_load --peer=transformers --peer_python=INTERPRETER
    python -m experiments.bench_load --model=POLICY --dtype=bfloat16 --peer=transformers --peer_python=INTERPRETER

Without --model a checkpoint with random weights is written first (--layers, --width, ... give its shape). What is held
beyond the parameters' own bytes is measured against a process that has imported everything and loaded nothing.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments import bench_flags, bench_model, common, result_files
from experiments.bench_process import Worker, in_turns, machine, median_of, ratio_of, table

FLAGS = flags.FLAGS
PEERS = ("transformers",)
MODULES = dict.fromkeys((*bench_flags.OURS, *PEERS), "experiments.bench_load_worker")
MIB = 2**20


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("model", None, "folder of a checkpoint; default: random weights made on the spot")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "dtype to load in (and to write it in)")
    bench_flags.define_peer_flags(PEERS)
    bench_flags.define_shape_flags(width=1024, layers=12)
    bench_flags.define_run_flags()


def largest_tensor(folder: Path, dtype: str) -> int:
    """Bytes of the largest tensor of a checkpoint, in the dtype that it is loaded in."""
    from caspo_jax.models.checkpoint import Checkpoint

    with Checkpoint(folder) as checkpoint:
        entries = max(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
    return entries * (4 if dtype == "float32" else 2)


def main() -> None:
    """Measure."""
    starts = bench_flags.given_sides(MODULES)
    given = common.require_folder(FLAGS.model, "model") if FLAGS.model else None
    shape = bench_flags.given_shape()
    save = result_files.claim("output", "bench_load")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given or bench_model.make_checkpoint(shape, Path(temporary) / "model", FLAGS.dtype)
        measured = measure(folder, starts)
        summary = report(measured, largest_tensor(folder, FLAGS.dtype))
    model = FLAGS.model or dataclasses.asdict(shape)
    save({"model": model, "dtype": FLAGS.dtype, "machine": machine(), **summary, "runs": measured})
    common.closing("loading (ratios: peer over caspo_jax)", summary)


def measure(folder: Path, starts: Mapping[str, Callable[..., Worker]]) -> dict[str, list[dict[str, Any]]]:
    """All runs by side."""

    def load(name: str) -> dict[str, Any]:
        # The allocator as a user has it: a tuned one keeps what is freed, which would count as memory.
        library = "caspo_jax" if name in bench_flags.OURS else name
        with starts[name]([library, str(folder), FLAGS.dtype], malloc={}) as worker:
            return worker.ask(do="load")

    sides = {name: (lambda name=name: load(name)) for name in starts}
    # Once each, so that the file is in the system's cache for all that follow; a peer that fails does so first.
    for name in reversed(sides):
        sides[name]()
    with common.Progress(2 * FLAGS.cycles * len(sides), "bench_load", unit="load") as progress:
        return in_turns(sides, FLAGS.cycles, progress.update)


def report(measured: dict[str, list[dict[str, Any]]], largest: int) -> dict[str, Any]:
    """Prints the table; returns the closing summary."""
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
    return summary


if __name__ == "__main__":
    define_flags()
    common.run(main, resumes=False)
