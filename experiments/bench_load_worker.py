"""One load in a process of its own: arguments are library, folder, dtype. Needs the library alone."""

from __future__ import annotations

import sys
import time
from typing import Any

from experiments.bench_worker import peak_bytes, reset_peak, resident_bytes, serve


def load_ours(folder: str, dtype: str) -> Any:
    """Imports caspo_jax; returns what loads and counts the parameters' bytes."""
    import jax
    from flax import nnx

    from caspo_jax.models import load_pretrained

    jax.block_until_ready(jax.numpy.zeros(1))  # the backend starts before the clock does

    def load() -> int:
        model, _ = load_pretrained(folder, dtype=dtype)
        leaves = jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
        kept.append(model)
        return sum(leaf.nbytes for leaf in leaves)

    kept: list[Any] = []
    return load


def load_transformers(folder: str, dtype: str) -> Any:
    """The same for transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(folder))]  # imports the model's code

    def load() -> int:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        kept.append(model)
        # Read once: a mapped file that nobody has touched is not loaded yet.
        for parameter in model.parameters():
            float(parameter.detach().sum())
        return sum(p.numel() * p.element_size() for p in model.parameters())

    kept: list[Any] = []
    return load


def main(library: str, folder: str, dtype: str) -> None:
    """Serve one command."""
    load = {"caspo_jax": load_ours, "transformers": load_transformers}[library](folder, dtype)

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        reset_peak()
        before, started = resident_bytes(), time.perf_counter()
        size = load()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "parameter_bytes": size, "peak_growth": peak_bytes() - before}

    serve(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
