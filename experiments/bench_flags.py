"""Flags that the benchmarks share, and what is checked of them before anything is measured."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from absl import flags

from caspo_jax.errors import UserError
from experiments import bench_model, common, result_files
from experiments.bench_process import KEEPING, Worker

FLAGS = flags.FLAGS

OURS = ("caspo_jax", "checkout")  # this version and, as a peer, another one
# Packages that a peer's process imports.
NEEDS = {
    "checkout": ("jax", "flax"),
    "trl": ("trl", "torch"),
    "tunix": ("tunix",),
    "torch": ("torch", "transformers"),
    "transformers": ("transformers", "torch"),
}


def define_shape_flags(width: int, layers: int) -> None:
    """The shape of a model of random weights."""
    flags.DEFINE_integer("vocab_size", 32_768, "vocabulary of the random checkpoint", lower_bound=32)
    flags.DEFINE_integer("width", width, "its hidden size, a multiple of 32", lower_bound=32)
    flags.DEFINE_integer("layers", layers, "its layers", lower_bound=1)
    flags.DEFINE_string(
        "shape",
        None,
        "instead of these three, the shape of a published model, as compile_check knows it (qwen2.5-0.5b, qwen2.5-1.5b, "
        "qwen2.5-7b, qwen3-8b, llama-3.1-8b), or that of a Hugging Face config.json",
    )


def given_shape() -> bench_model.Shape:
    """The shape flags: heads of 32, half as many key heads, an inner width of four times the width."""
    if FLAGS.shape:
        from caspo_jax.compile_check import model_shape

        return bench_model.Shape.of(model_shape(FLAGS.shape, "--shape"))
    check_width()
    heads = FLAGS.width // 32
    return bench_model.Shape(
        vocab_size=FLAGS.vocab_size,
        hidden_size=FLAGS.width,
        intermediate_size=4 * FLAGS.width,
        num_layers=FLAGS.layers,
        num_heads=heads,
        num_kv_heads=heads // 2 if heads % 2 == 0 else heads,
    )


def check_width() -> None:
    """Refuses a width that heads of 32 do not fill."""
    if FLAGS.width % 32:
        raise UserError(f"--width={FLAGS.width}: give a multiple of 32")


def define_peer_flags(peers: Iterable[str]) -> None:
    """Whom to compare with, and where it is installed."""
    flags.DEFINE_enum(
        "peer", "none", ["none", *peers, "checkout"], "what to compare with; checkout: another version"
    )
    flags.DEFINE_string("peer_python", None, "interpreter that has the peer; default: this one")
    flags.DEFINE_string(
        "peer_checkout", None, "folder of the version of caspo_jax that --peer=checkout means"
    )


def given_sides(modules: Mapping[str, str]) -> dict[str, Callable[..., Worker]]:
    """What starts a process of each side, given the arguments of its program: caspo_jax and, if there is one, the peer.

    Args:
      modules: the program of each side that there may be.

    Raises:
      UserError: the peer's interpreter lacks a package of it, or its checkout the program.
    """
    sides: dict[str, Callable[..., Worker]] = {
        "caspo_jax": functools.partial(Worker, sys.executable, modules["caspo_jax"])
    }
    if (FLAGS.peer == "checkout") != (FLAGS.peer_checkout is not None):
        raise UserError("--peer=checkout and --peer_checkout=FOLDER: give both or neither")
    if FLAGS.peer == "none":
        return sides
    module = modules[FLAGS.peer]
    start = functools.partial(Worker, _peer_python(), module)
    if FLAGS.peer == "checkout":
        start = functools.partial(start, folder=_checkout(module))
    else:
        start = functools.partial(start, malloc=KEEPING)
    return sides | {FLAGS.peer: start}


def _checkout(module: str) -> Path:
    """The folder of --peer_checkout, which must have the program."""
    folder, program = Path(FLAGS.peer_checkout), Path(*module.split(".")).with_suffix(".py")
    if not (folder / program).is_file():
        raise UserError(f"--peer_checkout={folder}: has no {program}: name a checkout of caspo_jax")
    return folder.absolute()


def _peer_python() -> str:
    """The interpreter of --peer_python, by default this one, which must have the packages of --peer."""
    python = FLAGS.peer_python or sys.executable
    if shutil.which(python) is None:
        raise UserError(f"--peer_python={python}: no such interpreter")
    lists_missing = (
        "import importlib.util, sys; print(*[n for n in sys.argv[1:] if not importlib.util.find_spec(n)])"
    )
    adapters = "lora_rank" in FLAGS and FLAGS.lora_rank and FLAGS.peer in ("trl", "torch")
    needed = (*NEEDS[FLAGS.peer], *(["peft"] if adapters else []))
    found = subprocess.run(
        [python, "-c", lists_missing, *needed], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise UserError(f"--peer_python={python} is no Python interpreter that works: {found.stderr}")
    if missing := found.stdout.split():
        raise UserError(
            f"--peer={FLAGS.peer}: {python} lacks {', '.join(missing)}: name an interpreter that has it with --peer_python"
        )
    return python


def define_run_flags(cycles: int = 3) -> None:
    """How often, and where the figures go."""
    flags.DEFINE_integer("cycles", cycles, "times that the sides are run in the order A B B A", lower_bound=1)
    result_files.define_output_flags("JSON file for all that was measured")
    common.define_terminal_flags()
