"""transformers' side of bench_decode. Needs torch and transformers; nothing of caspo_jax.

Best settings are chosen by the caller's warm-up: attention through `sdpa` or `eager`, a growing cache or a static one, and
with a static one `torch.compile`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, CompileConfig

from experiments.bench_worker import peak_bytes, reset_peak, serve, versions


class Side:
    """Answers `ready` and `run`."""

    def __init__(self, job: dict[str, Any]):
        torch.set_num_threads(os.cpu_count() or 1)
        torch.set_float32_matmul_precision("highest")
        self._job = job
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        reset_peak()
        model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
        self._model = model.to(self._device).eval()
        self._model.generation_config.eos_token_id = None  # every output has the same length
        self._ids = torch.tensor(job["prompts"], device=self._device)

    def __call__(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command."""
        if command["do"] == "ready":
            return {"versions": versions("transformers", "torch"), "device": self._device}
        return self._run(command["sampling"], command["settings"])

    @torch.inference_mode()
    def _run(self, sampling: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        new = self._job["new_tokens"]
        self._model.set_attn_implementation(settings["attention"])
        draws = sampling["temperature"] > 0
        filters = {"top_k": 0, "top_p": 1.0, **sampling} if draws else {}
        options: dict[str, Any] = {"cache_implementation": "static"} if settings["static"] else {}
        if settings["compiled"]:
            options["compile_config"] = CompileConfig(fullgraph=True)
            options["compile_config"]._compile_all_devices = True
        else:
            options["disable_compile"] = True
        started = time.perf_counter()
        out = self._model.generate(
            self._ids,
            attention_mask=torch.ones_like(self._ids),
            max_new_tokens=new,
            pad_token_id=0,
            do_sample=draws,
            **filters,
            **options,
        )
        out = out.cpu()
        seconds = time.perf_counter() - started
        tokens = out.numel() - self._ids.numel()
        peak = torch.cuda.max_memory_allocated() if self._device == "cuda" else peak_bytes()
        return {"seconds": seconds, "tokens": tokens, "peak": peak}


if __name__ == "__main__":
    serve(Side(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
