"""Questions as records, each with a key of its own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.records import question_from_record
from caspo_jax.sampling.keys import fold_in, key_data
from caspo_jax.store import parse_at
from caspo_jax.types import Question

Questions = Sequence[str | Question | Mapping[str, Any]]


def as_questions(questions: Questions) -> list[Question]:
    """Strings become records whose id is a hash of the text, so that neither place nor neighbours matter.

    Mappings are read as the lines of a file of questions are (`id`, `question`, `gold`, ...); one without an id gets the
    hash of its prompt.

    Raises:
      UserError: a single string, something that is no question or asks nothing, an id that is no string, or two
        different records of one id.
    """
    if isinstance(questions, str | Question):
        raise UserError("questions is one question: give a list of them")
    records: list[Question] = []
    seen: dict[str, Question] = {}
    for i, item in enumerate(questions):
        if isinstance(item, str):
            item = Question(id=_hash(item), question=item)
        elif isinstance(item, Mapping):
            item = parse_at(f"questions[{i}]", question_from_record, dict(item))
            if not item.id:
                item = dataclasses.replace(
                    item, id=_hash(str(item.prompt_ids or item.prompt or item.question))
                )
        elif not isinstance(item, Question):
            raise UserError(
                f"questions[{i}] is a {type(item).__name__}: give a str, a caspo_jax.types.Question "
                "or a mapping with its fields"
            )
        if not isinstance(item.id, str):
            raise UserError(f"questions[{i}]: id={item.id!r} is a {type(item.id).__name__}: give a string")
        # A chat template would wrap the empty text; `prompt=""` is BOS alone, and asks for any text.
        if item.prompt_ids is None and item.prompt is None and not (item.question or "").strip():
            raise UserError(f"questions[{i}]: the prompt is empty")
        if seen.setdefault(item.id, item) != item:
            raise UserError(
                f"questions[{i}]: id {item.id!r} is taken by another question; ids seed the sampling"
            )
        records.append(item)
    return records


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def question_hash(question_id: str) -> int:
    """A stable 32-bit hash of a question's id."""
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=4).digest(), "big")


def question_keys(key: Any, ids: Sequence[str]) -> np.ndarray:
    """[B, 2] uint32: fold_in(key, hash of the id), whatever stands beside it."""
    hashes = np.array([question_hash(i) for i in ids], np.uint32)
    return np.asarray(fold_in(jnp.tile(key_data(key), (len(ids), 1)), hashes))
