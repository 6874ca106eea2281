"""Questions as records, each with a key of its own."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.models.tokenizer import whole_text
from caspo_jax.records import question_from_record
from caspo_jax.records.values import read_ids
from caspo_jax.sampling.keys import fold_in, key_data
from caspo_jax.store import parse_at
from caspo_jax.types import Question

_prompt_ids = functools.partial(read_ids, field="prompt_ids")

LEAST_KEYS = 64  # that are made together: few numbers of them, as each is compiled
_folded = jax.jit(fold_in)

Questions = Sequence[str | Question | Mapping[str, Any]]


def as_questions(questions: Questions) -> list[Question]:
    """Strings become records whose id is a hash of the text, so that neither place nor neighbours matter.

    Mappings are read as the lines of a file of questions are (`id`, `question`, `gold`, ...); one without an id gets the
    hash of its prompt.

    Raises:
      UserError: a single question, a table that gives the names of its columns, something that is no question or asks
        nothing, a lone surrogate, an id that is no string, or two different records of one id.
    """
    # Each of these can be iterated, over letters or over the names of fields: all would be asked.
    if isinstance(questions, str | Question | Mapping):
        raise UserError("questions is one question: give a list of them")
    if hasattr(questions, "iterrows"):
        raise UserError('questions is a table of pandas: give a list of its rows, table.to_dict("records")')
    records: list[Question] = []
    seen: dict[str, Question] = {}
    for i, item in enumerate(questions):
        if isinstance(item, str):
            item = Question(id=_hash(whole_text(item, f"questions[{i}]")), question=item)
        elif isinstance(item, Mapping):
            item = parse_at(f"questions[{i}]", question_from_record, dict(item))
            if not item.id:
                asked = str(item.prompt_ids or item.prompt or item.question)
                item = dataclasses.replace(item, id=_hash(whole_text(asked, f"questions[{i}]")))
        elif not isinstance(item, Question):
            raise UserError(
                f"questions[{i}] is a {type(item).__name__}: give a str, a caspo_jax.types.Question "
                "or a mapping with its fields"
            )
        elif item.prompt_ids is not None:  # a list or an array will do, 5.5 will not
            ids = parse_at(f"questions[{i}]", _prompt_ids, vars(item))
            item = dataclasses.replace(item, prompt_ids=ids)
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
    hashes = np.zeros(max(LEAST_KEYS, 1 << (len(ids) - 1).bit_length()), np.uint32)
    hashes[: len(ids)] = [question_hash(i) for i in ids]
    return np.asarray(_folded(np.tile(key_data(key), (len(hashes), 1)), hashes))[: len(ids)]
