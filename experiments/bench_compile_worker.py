"""One compilation of the train step in a process of its own: arguments are layers, vocabulary, width, rows, length."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

import numpy as np
from flax import nnx

from caspo_jax.compilation import compiled_anew
from caspo_jax.models import Decoder, ModelConfig
from caspo_jax.training import TrainConfig, make_train_step
from caspo_jax.training.data import RowStore
from caspo_jax.training.make_plan import make_plan
from caspo_jax.training.step_loss import loss_denominators
from caspo_jax.training.train_step import fused_update
from experiments.bench_model import Shape, as_pairs, unrelated_pairs
from experiments.bench_worker import serve


def main(layers: int, vocab_size: int, width: int, rows: int, length: int) -> None:
    """Serve one command."""
    heads = width // 32
    shape = Shape(vocab_size, width, 4 * width, layers, heads, max(1, heads // 2))
    model = Decoder(ModelConfig(**dataclasses.asdict(shape)), rngs=nnx.Rngs(0))
    prompt = length // 8
    workload = unrelated_pairs(rows, vocab_size, prompt, (length - prompt) // 2, batch_size=rows)
    config = TrainConfig(batch_size=rows, pack_length=length, pack_rows=rows)
    plan = make_plan(RowStore.build(as_pairs(workload.pairs)), config)
    (micro,) = plan.micro(*plan.rows_of(0))
    step, state = make_train_step(model, config, 1)
    totals = loss_denominators(micro.batch, config.loss)

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        given = (micro.batch, totals, np.float32(0), np.uint32(0))
        lowered = fused_update.lower(step.spec, state, step.frozen, *given)
        with compiled_anew():
            compiled = lowered.compile()
        seconds = time.perf_counter() - started
        memory: Any = compiled.memory_analysis()
        return {"seconds": seconds, "temporaries": memory.temp_size_in_bytes}

    serve(answer)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
