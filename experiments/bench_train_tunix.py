"""tunix's side of bench_train. Needs tunix and what it brings along; nothing of caspo_jax.

Best settings found: float32, tokens given as ids, batches sorted by length and padded to a multiple of 64, so that few
shapes are compiled. tunix runs the reference model inside every step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen3 import model as qwen3
from tunix.models.qwen3 import params
from tunix.sft.dpo import dpo_trainer

from experiments.bench_worker import peak_bytes, reset_peak, resident_bytes, serve, versions


class Side:
    """Answers `ready` and `run`."""

    def __init__(self, job: dict[str, Any]):
        self._job = job
        self._trainers: dict[int, Any] = {}
        if job["lora_rank"] or job["remat"]:
            raise ValueError("the tunix side of bench_train knows neither --lora_rank nor --remat")
        reset_peak()
        dtype = jnp.dtype(job["dtype"])
        self._model, self._reference = (load(Path(job["model"]), dtype) for _ in range(2))

    def __call__(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command."""
        if command["do"] == "ready":
            return {"versions": versions("google-tunix", "jax", "flax"), "resident": resident_bytes()}
        return self._run(command["workload"], command["settings"]["micro"])

    def _run(self, name: str, micro: int) -> dict[str, Any]:
        workload = self._job["workloads"][name]
        batches = _batches(workload["pairs"], micro)
        trainer = self._trainer(workload["batch_size"] // micro)
        # Every run from the same weights, so that its first loss is log 2 as on the other sides. A copy: updates donate.
        nnx.update(self._model, jax.tree.map(jnp.copy, nnx.state(self._reference)))
        logged, before = len(_losses(trainer)), trainer.train_steps
        started = time.perf_counter()
        trainer.train(batches)
        jax.block_until_ready(nnx.state(self._model))
        seconds = time.perf_counter() - started
        trainer._write_train_metrics()  # else the last update's are written when the next run's come
        losses = _losses(trainer)[logged:]
        return {
            "seconds": seconds,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "updates": trainer.train_steps - before,
            "peak": peak_bytes(),
        }

    def _trainer(self, accumulation: int) -> Any:
        """One a setting, kept: a new one would compile anew."""
        if accumulation not in self._trainers:
            config = dpo_trainer.DPOTrainingConfig(
                beta=0.1,
                eval_every_n_steps=10**9,
                max_steps=None,
                gradient_accumulation_steps=accumulation if accumulation > 1 else None,
            )
            optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, weight_decay=0.0))
            self._trainers[accumulation] = dpo_trainer.DPOTrainer(
                model=self._model, ref_model=self._reference, optimizer=optimizer, training_config=config
            )
            # Else a second run skips as many batches as the first has read.
            self._trainers[accumulation].is_managed_externally = True
        return self._trainers[accumulation]


def _losses(trainer: Any) -> list[float]:
    """The losses of all updates so far."""
    try:
        return [float(x) for x in trainer.metrics_logger.get_metric_history("", "loss", "train")]
    except KeyError:  # none is written yet
        return []


def load(folder: Path, dtype: Any) -> Any:
    """tunix's model with the weights of a Hugging Face folder of Qwen3."""
    hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if hf["model_type"] != "qwen3":
        raise ValueError(f"the tunix side of bench_train knows qwen3 alone, not {hf['model_type']}")
    config = qwen3.ModelConfig(
        num_layers=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        embed_dim=hf["hidden_size"],
        hidden_dim=hf["intermediate_size"],
        num_heads=hf["num_attention_heads"],
        head_dim=hf["head_dim"],
        num_kv_heads=hf["num_key_value_heads"],
        rope_theta=int(hf["rope_parameters"]["rope_theta"]),
        norm_eps=hf["rms_norm_eps"],
        use_tied_embedding=hf["tie_word_embeddings"],
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return params.create_model_from_safe_tensors(str(folder), config, mesh, dtype=dtype)


def _batches(pairs: list[dict[str, list[int]]], micro: int) -> list[Any]:
    """Micro-batches of pairs of like length: prompts left-padded to a multiple of 64, steps right-padded."""
    ordered = sorted(pairs, key=lambda pair: len(pair["prefix"]))
    made = []
    for start in range(0, len(ordered), micro):
        group = ordered[start : start + micro]
        prompts = [pair["prompt"] + pair["prefix"] for pair in group]
        width = -(-max(map(len, prompts)) // 64) * 64
        fields = _padded("prompt", prompts, width, left=True)
        for side in ("chosen", "rejected"):
            rows = [pair[side] for pair in group]
            fields |= _padded(side, rows, max(map(len, rows)), left=False)
        made.append(dpo_trainer.TrainingInput(**fields))
    return made


def _padded(name: str, rows: list[list[int]], width: int, left: bool) -> dict[str, np.ndarray]:
    ids, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, True
    return {f"{name}_ids": ids, f"{name}_mask": mask}


if __name__ == "__main__":
    serve(Side(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
