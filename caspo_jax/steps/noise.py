"""A verifier that errs at a known rate: how much does training depend on the judge?"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.steps.verifiers import Verifier, VerifyItem, asked, verifier_settings
from caspo_jax.types import Verdict

_FLIPPED: dict[Verdict, Verdict] = {"correct": "wrong", "wrong": "correct", "unknown": "unknown"}


@dataclasses.dataclass(frozen=True)
class NoisyVerifier:
    """Flips correct and wrong verdicts of another verifier, each with probability `rate`.

    Whether a verdict is flipped depends on the seed and on what is judged (question, prefix, step) alone: the same step
    is always misjudged alike, as by a judge that does not understand it, and a restart flips the same verdicts.
    """

    inner: Verifier
    rate: float  # in [0, 1]
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise UserError(f"label noise {self.rate}: give a share between 0 and 1")

    @property
    def name(self) -> str:
        """The inner verifier's name with rate and seed: records and manifests carry it."""
        return f"{self.inner.name}+noise:{self.rate:g}/{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """The inner verifier's; rate and seed are in the name."""
        return verifier_settings(self.inner)

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """One verdict an item, some of them flipped."""
        verdicts = asked(self.inner, items)
        return [_FLIPPED[v] if self._flips(item) else v for item, v in zip(items, verdicts, strict=True)]

    def _flips(self, item: VerifyItem) -> bool:
        question = item.question.question or item.question.prompt or item.question.prompt_ids
        judged = repr((self.seed, question, item.prefix, item.step)).encode()
        draw = int.from_bytes(hashlib.blake2b(judged, digest_size=8).digest(), "big")
        return draw < self.rate * 2**64
