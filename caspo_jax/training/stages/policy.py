"""The policy that a stage works with, and what the stages share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.distributed import from_writer
from caspo_jax.models import load_caspo_json, load_pretrained, token_bytes
from caspo_jax.records import question_to_record
from caspo_jax.store import JsonlOutput, Manifest, hash_path, manifest_path
from caspo_jax.types import Question

Progress = Callable[[int, int], None]  # (done, in all)
Extract = Callable[[str], str | None]
Equal = Callable[[str, str], bool]


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy in memory with where it came from."""

    model: Any
    tokenizer: Any
    path: str
    hash: str
    settings: Mapping[str, Any]  # its caspo.json

    @classmethod
    def load(cls, path: str | Path, dtype: str | None = None, mesh: Any = None) -> Policy:
        """Load a policy folder (or hub id) once, for all the stages that read it."""
        model, tokenizer = load_pretrained(path, dtype=dtype, mesh=mesh)
        digest = from_writer("policy", lambda: hash_path(path)) if Path(path).exists() else str(path)
        return cls(model, tokenizer, str(path), digest, load_caspo_json(path))

    @property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every token of the vocabulary."""
        return token_bytes(self.tokenizer, self.model.config.vocab_size)


def questions_digest(questions: Sequence[Question]) -> str:
    """A hash of the questions, for manifests."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(json.dumps(question_to_record(question), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def open_output(output: str | Path, program: str, config: Mapping[str, Any], overwrite: bool) -> JsonlOutput:
    """The JSONL of a stage, with its manifest beside it."""
    manifest = Manifest.open(manifest_path(output), program=program, config=config, overwrite=overwrite)
    return JsonlOutput(output, manifest)
