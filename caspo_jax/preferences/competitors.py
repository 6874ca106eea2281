"""The nearest competitor of a step: its most uncertain token swapped, then continued greedily."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from caspo_jax.errors import UserError
from caspo_jax.preferences.candidates import Candidate
from caspo_jax.sampling.segments import resume
from caspo_jax.steps import DEFAULT_DELIMITER, Verifier, VerifyItem, segment
from caspo_jax.steps.segmentation import join_bytes
from caspo_jax.steps.verifiers import asked
from caspo_jax.types import Step, Verdict

# (contexts, emitted): for each context (prompt + prefix + part of a step) the most probable token other
# than `emitted`.
OtherToken = Callable[[Sequence[tuple[int, ...]], Sequence[int]], Sequence[int]]
# contexts -> for each the greedy continuation to the delimiter or EOS, both included, and whether it got there.
Complete = Callable[[Sequence[tuple[int, ...]]], Sequence[tuple[Sequence[int], bool]]]


@dataclasses.dataclass(frozen=True)
class Rival:
    """A step to reject."""

    token_ids: tuple[int, ...]
    text: str
    ends_trace: bool
    verdict: Verdict
    confidence: float | None = None


@dataclasses.dataclass(frozen=True)
class NoCompetitor:
    """Why there is none."""

    reason: Literal["no_entropy", "unfinished", "equal"]


class CompetitorMaker(Protocol):
    """Makes one competitor a candidate."""

    def __call__(
        self, candidates: Sequence[Candidate], kind: Literal["step", "token"]
    ) -> Sequence[Rival | NoCompetitor]:
        """Rivals in the order of the candidates; verified if `kind` is `step`."""
        ...


class _Tail(NamedTuple):
    """The end of a prefix: steps behind it are cut from here, for the whole may be a hundred times as long."""

    ids: tuple[int, ...]
    characters: int  # where the prefix ends in the text of `ids`


@dataclasses.dataclass(frozen=True)
class GreedyCompetitors:
    """Competitors by the model itself (docs/design.md, section 3, `low_confidence_correct`).

    The step is kept up to its highest-entropy token (first of equals; among tokens that spell text of the
    step), where the most probable other token is put in. Kind `step`: continued greedily to the delimiter and
    verified. Kind `token`: ends with the swapped token, unverified (the paper's literal rule).
    """

    token_bytes: Sequence[bytes]  # for each id of the vocabulary the bytes it spells
    eos_ids: frozenset[int]
    other_token: OtherToken | None = None  # not needed where candidates carry `other_ids`
    complete: Complete | None = None  # needed by kind `step`
    verifier: Verifier | None = None  # needed by kind `step`
    delimiter: str = DEFAULT_DELIMITER

    def __call__(
        self, candidates: Sequence[Candidate], kind: Literal["step", "token"] = "step"
    ) -> list[Rival | NoCompetitor]:
        """One rival, or the reason for none, a candidate. Raises UserError without what `kind` needs."""
        if kind == "step" and (self.complete is None or self.verifier is None):
            raise UserError("competitor='step' needs complete= (greedy continuation) and verifier=")
        result: list[Rival | NoCompetitor] = [NoCompetitor("no_entropy")] * len(candidates)
        tails = {i: self._tail(c) for i, c in enumerate(candidates) if c.entropy is not None}
        found = {i: self._position(candidates[i], tail) for i, tail in tails.items()}
        positions = {i: position for i, position in found.items() if position is not None}
        partial = self._swapped([(i, candidates[i], positions[i]) for i in positions])
        if kind == "token":
            for i, ids in partial.items():
                result[i] = self._rival(tails[i], ids)
            return result
        whole = self._completed({i: (candidates[i], tails[i], ids) for i, ids in partial.items()})
        rivals: dict[int, Rival] = {}
        for i in partial:
            step_ids = whole[i]
            if step_ids is None:
                result[i] = NoCompetitor("unfinished")
                continue
            rival = self._rival(tails[i], step_ids)
            if rival.text.strip() == candidates[i].text.strip():
                result[i] = NoCompetitor("equal")
            else:
                rivals[i] = rival
        verdicts = self._verify([(candidates[i], rival) for i, rival in rivals.items()])
        for (i, rival), verdict in zip(rivals.items(), verdicts, strict=True):
            result[i] = dataclasses.replace(rival, verdict=verdict)
        return result

    def _tail(self, candidate: Candidate) -> _Tail:
        ids, characters = candidate.prefix_ids, len(candidate.prefix)
        data = join_bytes(ids, self.token_bytes)
        start = resume(self.token_bytes, ids, self.delimiter)
        size = sum(len(self.token_bytes[token]) for token in ids[start:])
        before = len(data[: len(data) - size].decode("utf-8", "replace"))
        # A text that is not that of its tokens may end before them: then the whole.
        return _Tail(ids[start:], characters - before) if before < characters else _Tail(ids, characters)

    def _position(self, candidate: Candidate, tail: _Tail) -> int | None:
        """The highest-entropy token among those that spell text of the step."""
        entropy = candidate.entropy
        assert entropy is not None
        _, _, counted = segment(tail.ids + candidate.token_ids, self.token_bytes, self.delimiter)
        textual = [
            t
            for t, token in enumerate(candidate.token_ids)
            if counted[len(tail.ids) + t] and self.token_bytes[token] and entropy[t] is not None
        ]
        return max(textual, key=lambda t: (entropy[t], -t), default=None)

    def _swapped(self, wanted: Sequence[tuple[int, Candidate, int]]) -> dict[int, tuple[int, ...]]:
        """The step's ids up to the swap, the other token last."""
        unknown = [(i, c, t) for i, c, t in wanted if c.other_ids is None]
        others = {i: c.other_ids[t] for i, c, t in wanted if c.other_ids is not None}
        if unknown:
            if self.other_token is None:
                raise UserError(
                    f"step {unknown[0][1].step_index} of trace {unknown[0][1].trace_id!r} has no other_ids: "
                    "give other_token= or candidates with the most probable other tokens"
                )
            contexts = [c.prompt_ids + c.prefix_ids + c.token_ids[:t] for _, c, t in unknown]
            found = self.other_token(contexts, [c.token_ids[t] for _, c, t in unknown])
            others |= {i: int(token) for (i, _, _), token in zip(unknown, found, strict=True)}
        return {i: (*c.token_ids[:t], others[i]) for i, c, t in wanted}

    def _completed(
        self, partial: dict[int, tuple[Candidate, _Tail, tuple[int, ...]]]
    ) -> dict[int, tuple[int, ...] | None]:
        """The ids of the finished step; None where the limit was met first."""
        assert self.complete is not None
        done = {i: self._first_step(tail, ids) for i, (_, tail, ids) in partial.items()}
        ongoing = [i for i in partial if done[i] is None and not self.eos_ids.intersection(partial[i][2])]
        contexts = [partial[i][0].prompt_ids + partial[i][0].prefix_ids + partial[i][2] for i in ongoing]
        made = self.complete(contexts) if ongoing else ()
        for i, (continuation, finished) in zip(ongoing, made, strict=True):
            _, tail, ids = partial[i]
            ids = (*ids, *(int(token) for token in continuation))
            done[i] = self._first_step(tail, ids, finished)
        return done

    def _first_step(
        self, tail: _Tail, ids: tuple[int, ...], finished: bool = False
    ) -> tuple[int, ...] | None:
        """The ids up to the end of the first step after the prefix; None if there is none yet or it is not closed."""
        for t, token in enumerate(ids):
            if token in self.eos_ids:
                ids = ids[: t + 1]
                break
        text, step = self._own_step(tail, ids)
        if step is None:
            return None
        closed = finished or step.end < len(text) or ids[-1] in self.eos_ids
        return ids[: step.token_end - len(tail.ids)] if closed else None

    def _own_step(self, tail: _Tail, ids: tuple[int, ...]) -> tuple[str, Step | None]:
        """The text of tail and `ids`, and the first step that starts after the prefix.

        Delimiter bytes that `ids` begin with lengthen the prefix's delimiter, or stand before the first step: no step.
        """
        text, steps, _ = segment(tail.ids + ids, self.token_bytes, self.delimiter)
        return text, next((step for step in steps if step.start >= tail.characters), None)

    def _rival(self, tail: _Tail, ids: tuple[int, ...]) -> Rival:
        _, step = self._own_step(tail, ids)
        return Rival(
            token_ids=ids,
            text="" if step is None else step.text,
            ends_trace=ids[-1] in self.eos_ids,
            verdict="unknown",
        )

    def _verify(self, rivals: Sequence[tuple[Candidate, Rival]]) -> list[Verdict]:
        if not rivals:
            return []
        assert self.verifier is not None
        return asked(
            self.verifier,
            [
                VerifyItem(
                    question=candidate.question,
                    prefix=candidate.prefix,
                    step=rival.text,
                    is_last=rival.ends_trace,
                    prompt_ids=candidate.prompt_ids,
                    prefix_ids=candidate.prefix_ids,
                    step_ids=rival.token_ids,
                )
                for candidate, rival in rivals
            ],
        )
