"""How far a stage that decodes is: questions, tokens, tokens a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from caspo_jax.sampling.units import Usage
from caspo_jax.types import Progress


class DecodingProgress:
    """Tells `progress` how many of `questions` are done, and how many tokens were decoded, and how fast.

    `usage` and `within(...)` are what the sampler is to be called with.
    """

    def __init__(self, progress: Callable[..., None] | None, questions: int):
        self.usage = Usage()
        self._progress, self._questions = progress, questions
        self._first: tuple[int, float] | None = None  # tokens and time of the first look

    def __call__(self, done: int) -> None:
        """So many questions are done."""
        if self._progress is None:
            return
        tokens, now = self.usage.live, time.monotonic()
        shown: dict[str, int] = {"tokens": tokens} if tokens else {}
        if self._first is None and tokens:
            self._first = (tokens, now)
        elif self._first is not None and tokens > self._first[0]:
            before, since = self._first  # until then it mostly compiled
            shown["tokens_per_second"] = round((tokens - before) / max(now - since, 1e-9))
        self._progress(done, self._questions, **shown)

    def within(self, before: int) -> Progress:
        """The callback of a group with so many questions before it."""
        return lambda done, _: self(before + done)
