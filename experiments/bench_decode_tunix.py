"""tunix's side of bench_decode. Needs tunix and what it brings along; nothing of caspo_jax.

Best settings found: no logits kept, a cache exactly as long as prompt and output, prompts of one length (tunix pads to a
power of two otherwise).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tunix.generate.sampler import CacheConfig, Sampler

from experiments.bench_train_tunix import load
from experiments.bench_worker import peak_bytes, reset_peak, serve, versions


class _Ids:
    """A tokenizer whose text is the ids themselves."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # none is put in front

    def eos_id(self) -> int:
        return -1  # none: every output has the same length

    def pad_id(self) -> int:
        return 0


class Side:
    """Answers `ready` and `run`."""

    def __init__(self, job: dict[str, Any]):
        self._job = job
        reset_peak()
        model = load(Path(job["model"]), jnp.dtype(job["dtype"]))
        self._texts = [" ".join(map(str, ids)) for ids in job["prompts"]]
        self._prompt = len(job["prompts"][0])
        config = model.config
        size = self._prompt + job["new_tokens"]
        self._sampler = Sampler(
            model, _Ids(), CacheConfig(size, config.num_layers, config.num_kv_heads, config.head_dim)
        )

    def __call__(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command."""
        if command["do"] == "ready":
            device = jax.local_devices()[0].device_kind
            return {"versions": versions("google-tunix", "jax", "flax"), "device": device}
        return self._run(command["sampling"])

    def _run(self, sampling: dict[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if sampling["temperature"] > 0:
            options = {"top_p": sampling.get("top_p", 1.0), "top_k": sampling.get("top_k")}
            options |= {"temperature": sampling["temperature"], "seed": 0}
        started = time.perf_counter()
        out = self._sampler(
            self._texts,
            max_generation_steps=self._job["new_tokens"],
            max_prompt_length=self._prompt,
            **options,
        )
        jax.block_until_ready(out.tokens)
        seconds = time.perf_counter() - started
        found = jax.local_devices()[0].memory_stats()
        peak = found["peak_bytes_in_use"] if found else peak_bytes()
        return {"seconds": seconds, "tokens": sum(len(row) for row in out.tokens), "peak": peak}


if __name__ == "__main__":
    serve(Side(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
