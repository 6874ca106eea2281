"""TRL's side of bench_train. Needs trl, torch and what they bring along; nothing of caspo_jax.

Best settings found: float32 (TRL's own default on CPU is bfloat16), no gradient checkpointing, tokens given as ids, pairs
read in order of length, reference log-probs computed once before the first update.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from experiments.bench_worker import peak_bytes, reset_peak, resident_bytes, serve, versions


class TokenTrainer(DPOTrainer):
    """Takes token ids as they are, in their order, and times the reference pass wherever TRL runs it."""

    reference_seconds = 0.0
    training = False

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Dataset:
        started = time.perf_counter()
        filled = super()._precompute_ref_logps(*args, **kwargs)
        if not self.training:
            self.reference_seconds += time.perf_counter() - started
        return filled


class Side:
    """Answers `ready` and `run`."""

    def __init__(self, job: dict[str, Any]):
        torch.set_num_threads(os.cpu_count() or 1)
        self._job = job
        reset_peak()
        self._model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
        words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
        self._tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
        )

    def __call__(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command."""
        if command["do"] == "ready":
            return {"versions": versions("trl", "torch", "transformers"), "resident": resident_bytes()}
        return self._run(command["workload"], command["settings"]["micro"])

    def _run(self, name: str, micro: int) -> dict[str, Any]:
        workload = self._job["workloads"][name]
        with tempfile.TemporaryDirectory() as folder:
            wanted = {
                "output_dir": folder,
                "per_device_train_batch_size": micro,
                "gradient_accumulation_steps": workload["batch_size"] // micro,
                "precompute_ref_log_probs": True,
                "precompute_ref_batch_size": micro,
                "beta": 0.1,
                "bf16": self._job["dtype"] == "bfloat16",
                "gradient_checkpointing": self._job["remat"],
                "learning_rate": 1e-5,
                "max_grad_norm": 1.0,
                "max_length": None,
                "num_train_epochs": 1,
                "logging_steps": 1,
                "report_to": "none",
                "save_strategy": "no",
                "use_cpu": not torch.cuda.is_available(),
                "dataloader_pin_memory": torch.cuda.is_available(),
                "disable_tqdm": True,
            }
            known = {field.name for field in dataclasses.fields(DPOConfig)}
            trainer = TokenTrainer(
                model=self._model,
                args=DPOConfig(**{key: value for key, value in wanted.items() if key in known}),
                train_dataset=_dataset(workload["pairs"]),
                processing_class=self._tokenizer,
                peft_config=self._adapter(),
            )
            if self._job["lora_rank"]:
                self._model = trainer.model
            started = time.perf_counter()
            trainer.training = True
            trainer.train()
            seconds = time.perf_counter() - started + trainer.reference_seconds
        losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
        return {
            "seconds": seconds,
            "reference_seconds": trainer.reference_seconds,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "updates": trainer.state.global_step,
            "peak": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes(),
        }

    def _adapter(self) -> Any:
        """What PEFT is asked for, once: TRL wraps the model that it is given."""
        if not self._job["lora_rank"] or hasattr(self._model, "peft_config"):
            return None
        from peft import LoraConfig

        return LoraConfig(r=self._job["lora_rank"], target_modules="all-linear", task_type="CAUSAL_LM")


def _dataset(pairs: list[dict[str, list[int]]]) -> Dataset:
    """Shorter rows first, under a fingerprint of its own: TRL would find an equal data set's reference on disk."""
    rows = [
        {
            "prompt_ids": pair["prompt"] + pair["prefix"],
            "chosen_ids": pair["chosen"],
            "rejected_ids": pair["rejected"],
        }
        for pair in sorted(pairs, key=lambda pair: len(pair["prefix"]))
    ]
    dataset = Dataset.from_list(rows)
    dataset._fingerprint = uuid.uuid4().hex
    return dataset


if __name__ == "__main__":
    serve(Side(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
