"""One compilation of the train step in a process of its own: arguments are layers, vocabulary, width, rows, length."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

import jax

from caspo_jax.compile_check.programs import TrainShape, train_program
from caspo_jax.models import ModelConfig
from caspo_jax.sharding import make_mesh
from caspo_jax.training import TrainConfig
from experiments.bench_model import Shape
from experiments.bench_worker import serve


def main(layers: int, vocab_size: int, width: int, rows: int, length: int) -> None:
    """Serve one command."""
    heads = width // 32
    shape = Shape(vocab_size, width, 4 * width, layers, heads, max(1, heads // 2))
    config = ModelConfig(**dataclasses.asdict(shape))
    jax.config.update("jax_enable_compilation_cache", False)
    jax.block_until_ready(jax.numpy.zeros(1))  # the backend starts before the clock does

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        mesh = make_mesh("data:1", jax.devices()[:1])
        assert mesh is not None
        program = train_program(config, mesh, TrainShape(rows, length), TrainConfig(), "float32")
        compiled = program.lowered.compile()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "temporaries": compiled.memory_analysis().temp_size_in_bytes}

    serve(answer)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
