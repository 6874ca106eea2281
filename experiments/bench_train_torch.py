"""Plain PyTorch's side of bench_train: the same DPO step written out, under torch.compile. Needs torch and transformers.

Best settings found: padding to multiples of 64, so that few shapes are compiled; the head on the columns that hold a
step alone; the fused optimiser; reference log-probs computed once before the first update; on a GPU fused attention.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from experiments.bench_worker import peak_bytes, reset_peak, resident_bytes, serve, versions

_BETA = 0.1
_MULTIPLE = 64


class Side:
    """Answers `ready` and `run`."""

    def __init__(self, job: dict[str, Any]):
        torch.set_num_threads(os.cpu_count() or 1)
        self._job = job
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        reset_peak()
        model: Any = AutoModelForCausalLM.from_pretrained(
            job["model"], dtype=getattr(torch, job["dtype"]), attn_implementation="sdpa"
        )
        model.config.use_cache = False
        if job["lora_rank"]:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(
                model, LoraConfig(r=job["lora_rank"], target_modules="all-linear", task_type="CAUSAL_LM")
            )
        if job["remat"]:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._model = model.to(self._device).train()
        self._logprobs = torch.compile(self._plain_logprobs, dynamic=False)

    def __call__(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command."""
        if command["do"] == "ready":
            return {"versions": versions("torch", "transformers"), "resident": resident_bytes()}
        return self._run(command["workload"], command["settings"]["micro"])

    def _plain_logprobs(
        self, token_ids: torch.Tensor, mask: torch.Tensor, scored: torch.Tensor
    ) -> torch.Tensor:
        """Log-prob sums [R] float32 of the last columns [R, S] of rows [R, T] where `scored`."""
        columns = scored.shape[1]
        logits = self._model(input_ids=token_ids, attention_mask=mask, logits_to_keep=columns + 1).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), token_ids[:, -columns:], reduction="none"
        )
        return -(losses * scored).sum(dim=1)

    def _run(self, name: str, micro: int) -> dict[str, Any]:
        workload = self._job["workloads"][name]
        accumulation = workload["batch_size"] // micro
        trained = [p for p in self._model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
        batches = [self._placed(batch) for batch in _batches(workload["pairs"], micro)]
        losses, updates = [], 0
        started = time.perf_counter()
        with torch.no_grad(), self._base():
            references = [self._logprobs(*batch) for batch in batches]
        for i, (batch, reference) in enumerate(zip(batches, references)):
            chosen, rejected = (self._logprobs(*batch) - reference).chunk(2)
            loss = -torch.nn.functional.logsigmoid(_BETA * (chosen - rejected)).mean() / accumulation
            loss.backward()
            losses.append(loss.detach() * accumulation)
            if (i + 1) % accumulation == 0:
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                updates += 1
        values = [float(loss) for loss in losses]  # waits for the device
        return {
            "seconds": time.perf_counter() - started,
            "first_loss": values[0],
            "last_loss": values[-1],
            "updates": updates,
            "peak": torch.cuda.max_memory_allocated() if self._device == "cuda" else peak_bytes(),
        }

    def _base(self) -> Any:
        """Where the reference is the model without its adapters."""
        import contextlib

        return self._model.disable_adapter() if self._job["lora_rank"] else contextlib.nullcontext()

    def _placed(self, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(x.to(self._device) for x in batch)


def _batches(pairs: list[dict[str, list[int]]], micro: int) -> list[tuple[torch.Tensor, ...]]:
    """Micro-batches of pairs of like length, chosen rows first: padded on the left, so that steps end together."""
    ordered = sorted(pairs, key=lambda pair: len(pair["prefix"]))
    made: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, len(ordered), micro):
        group = ordered[start : start + micro]
        rows = [
            (pair["prompt"] + pair["prefix"], pair[side]) for side in ("chosen", "rejected") for pair in group
        ]
        width = -(-max(len(context) + len(step) for context, step in rows) // _MULTIPLE) * _MULTIPLE
        columns = max(len(step) for _, step in rows)
        token_ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        scored = torch.zeros((len(rows), columns))
        for i, (context, step) in enumerate(rows):
            token_ids[i, width - len(context) - len(step) :] = torch.tensor(context + step)
            mask[i, width - len(context) - len(step) :] = 1
            scored[i, columns - len(step) :] = 1
        made.append((token_ids, mask, scored))
    return made


if __name__ == "__main__":
    serve(Side(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
