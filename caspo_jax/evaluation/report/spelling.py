"""The tokenizer that wrote a file of records, found by trying: only one that spells their text exactly will do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.report.align import token_lengths
from caspo_jax.models import load_tokenizer, token_bytes


@dataclasses.dataclass(frozen=True)
class Spelling:
    """A vocabulary: the bytes of each id, and the names of ids that spell nothing."""

    bytes: Sequence[bytes]
    names: dict[int, str]

    @classmethod
    def of(cls, tokenizer: Any) -> Spelling:
        """The spelling of a tokenizer's vocabulary."""
        vocabulary = token_bytes(tokenizer, len(tokenizer))
        silent = [i for i, data in enumerate(vocabulary) if not data]
        names = tokenizer.convert_ids_to_tokens(silent) if silent else []
        return cls(vocabulary, {i: str(n) for i, n in zip(silent, names) if n is not None})

    def lengths(self, token_ids: Sequence[int], text: str) -> list[int] | None:
        """UTF-16 units of each token, or None if these tokens do not spell this text."""
        spelt, lengths = token_lengths(token_ids, self.bytes)
        return lengths if spelt == text else None


class Spellings:
    """Loads the tokenizers of policy folders when they are asked for, each once."""

    def __init__(self, folders: Iterable[Path], load: Callable[[Path], Any] = load_tokenizer):
        self._folders = list(dict.fromkeys(folders))
        self._load = load
        self._loaded: dict[Path, Spelling | None] = {}

    def _spelling(self, folder: Path) -> Spelling | None:
        if folder not in self._loaded:
            try:
                self._loaded[folder] = Spelling.of(self._load(folder))
            except UserError:  # a sentencepiece tokenizer: its records are shown by steps
                self._loaded[folder] = None
        return self._loaded[folder]

    def find(self, samples: Sequence[tuple[Sequence[int], str]]) -> Spelling | None:
        """The first vocabulary that spells all of `samples`, (token ids, text) each; None if there is none."""
        used = [sample for sample in samples if sample[0]]
        for folder in self._folders:
            spelling = self._spelling(folder)
            if spelling and used and all(spelling.lengths(i, t) is not None for i, t in used):
                return spelling
        return None

    def first(self) -> Spelling | None:
        """The first that can be loaded: for records that carry no text to check against."""
        return next((s for folder in self._folders if (s := self._spelling(folder)) is not None), None)
