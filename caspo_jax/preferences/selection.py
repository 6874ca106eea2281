"""Candidates to preference pairs, with a count of everything dropped and why."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence, Set
from typing import Any

import numpy as np

from caspo_jax.checks import of_kind
from caspo_jax.errors import UserError
from caspo_jax.preferences.candidates import Candidate, Place, filter_candidates
from caspo_jax.preferences.competitors import CompetitorMaker, NoCompetitor, Rival
from caspo_jax.preferences.config import PairConfig
from caspo_jax.preferences.identity import stable_hash
from caspo_jax.preferences.token_tree import common_prefix
from caspo_jax.types import Pair, PairKind

REASONS = (  # why candidates that could be used came into no pair, as they are counted
    "wrong_without_correct",  # a wrong step with no correct sibling
    "aligned",  # correct and sure against wrong and unsure
    "over_limit",  # max_pairs_per_prefix reached
    "duplicate_pair",  # the same texts or ids as an earlier pair
    "competitor_no_entropy",  # no per-token entropies, or no token with text to swap
    "competitor_unfinished",  # the continuation met the limit
    "competitor_equal",  # spells the chosen step again
    "competitor_correct",  # verified correct
    "competitor_unknown",  # could not be verified
    "competitor_known_correct",  # called wrong, but equal to a sibling called correct
)


# What a pair is made of (`make_pair`). It holds no prefix of its own: a long thought has hundreds of pairs.
Contrast = tuple[PairKind, Candidate, Rival]


def select_pairs(
    candidates: Sequence[Candidate],
    config: PairConfig | None = None,
    *,
    competitors: CompetitorMaker | None = None,
) -> tuple[list[Pair], dict[str, Any]]:
    """Step-level preference pairs of both kinds (docs/design.md, section 3).

    `wrong`: each wrong step, most confident first, against a correct sibling, least confident first, as long
    as the pair is not aligned already. With pick="random" both orders are random; with pick="nearest" the sibling is
    the one that begins with most of the wrong step's tokens. `low_confidence_correct`: each correct step with c < tau, least
    confident first, against its nearest competitor. The result does not depend on other prefixes.

    Args:
      candidates: from `build_candidates`.
      config: options; default PairConfig().
      competitors: makes and verifies the rivals of `low_confidence_correct`; needed by that kind alone.

    Returns:
      The pairs, by prefix in order of first appearance, and counts: `candidates`, `usable` (those that no filter
      dropped: tau is a quantile of their confidences), `prefixes`, `tau`, what each filter dropped, `attempts_KIND` and `pairs_KIND`, and why attempts gave no pair; attempts =
      pairs + reasons.

    Raises:
      UserError: something else than candidates; `low_confidence_correct` is asked for without `competitors`.
    """
    contrasts, counts = select_contrasts(candidates, config, competitors=competitors)
    return [make_pair(*contrast) for contrast in contrasts], counts


def select_contrasts(
    candidates: Sequence[Candidate],
    config: PairConfig | None = None,
    *,
    competitors: CompetitorMaker | None = None,
) -> tuple[list[Contrast], dict[str, Any]]:
    """`select_pairs`, of which the caller makes the pairs: all at once, they hold all their prefixes."""
    config = config or PairConfig()
    for candidate in candidates:
        hint = "candidates, counts = build_candidates(traces)"
        of_kind(candidate, Candidate, "select_pairs", "a candidate", hint)
    if "low_confidence_correct" in config.kinds and competitors is None:
        raise UserError(
            "pairs of kind low_confidence_correct need a model to make competitors: "
            "give competitors=, or kinds=('wrong',)"
        )
    groups, counts = filter_candidates(candidates, allow_flawed_prefix=config.allow_flawed_prefix)
    counts = {
        "candidates": len(candidates),
        "usable": sum(map(len, groups)),
        "prefixes": len(groups),
        **counts,
        **dict.fromkeys(REASONS, 0),
    }
    tau = _tau(groups, config)
    # Also of candidates that were dropped: a step once verified as correct is never a rejected one.
    correct = {(c.place, c.text.strip()) for c in candidates if c.verdict == "correct"}
    builder = _Builder(config, tau, groups, correct, collections.Counter(counts))
    for kind in config.kinds:
        builder.counts[f"attempts_{kind}"] = builder.counts[f"pairs_{kind}"] = 0
        if kind == "wrong":
            builder.add_wrong()
        else:
            assert competitors is not None
            builder.add_low_confidence(competitors)
    return [pair for pairs in builder.pairs for pair in pairs], {**builder.counts, "tau": tau}


def _tau(groups: Sequence[Sequence[Candidate]], config: PairConfig) -> float | None:
    if config.tau is not None:
        return config.tau
    values = [c.confidence for group in groups for c in group]
    return float(np.quantile(np.asarray(values, np.float64), config.tau_quantile)) if values else None


class _Builder:
    """The pairs of every prefix as they are found."""

    def __init__(
        self,
        config: PairConfig,
        tau: float | None,
        groups: Sequence[Sequence[Candidate]],
        correct: Set[tuple[Place, str]],
        counts: collections.Counter[str],
    ) -> None:
        self.config, self.tau, self.groups, self.correct, self.counts = config, tau, groups, correct, counts
        self.pairs: list[list[Contrast]] = [[] for _ in groups]
        self.seen: set[tuple] = set()

    def add_wrong(self) -> None:
        for row, group in enumerate(self.groups):
            for wrong, correct in self._contrasts(group):
                self.counts["attempts_wrong"] += 1
                if correct is None:
                    continue
                rival = Rival(
                    token_ids=wrong.token_ids,
                    text=wrong.text,
                    ends_trace=wrong.ends_trace,
                    verdict="wrong",
                    confidence=wrong.confidence,
                )
                self._add(row, "wrong", correct, rival)

    def _contrasts(self, group: Sequence[Candidate]) -> Iterator[tuple[Candidate, Candidate | None]]:
        """Each wrong step with its correct sibling; None (counted) where there is none to set against it."""
        wrong = sorted((c for c in group if c.verdict == "wrong"), key=_confidence, reverse=True)
        correct = sorted((c for c in group if c.verdict == "correct"), key=_confidence)
        if self.config.pick != "confident" and wrong:
            random = np.random.default_rng(int(stable_hash(self.config.seed, *group[0].key), 16))
            wrong = [wrong[i] for i in random.permutation(len(wrong))]
            correct = [correct[i] for i in random.permutation(len(correct))]
        used: collections.Counter[tuple[int, ...]] = collections.Counter()
        for candidate in wrong:
            allowed = [c for c in correct if self.config.include_aligned or not self._aligned(c, candidate)]
            if allowed:
                if self.config.pick == "nearest":  # what both say cancels: the contrast is where they part
                    shared = [_shared(c, candidate) for c in allowed]
                    longest = max(shared)
                    allowed = [c for c, tokens in zip(allowed, shared) if tokens == longest]
                sibling = min(allowed, key=lambda c: used[c.token_ids])  # stable: earlier ones first
                used[sibling.token_ids] += 1
                yield candidate, sibling
            else:
                self.counts["aligned" if correct else "wrong_without_correct"] += 1
                yield candidate, None

    def _aligned(self, correct: Candidate, wrong: Candidate) -> bool:
        return self.tau is not None and _confidence(correct) >= self.tau > _confidence(wrong)

    def add_low_confidence(self, competitors: CompetitorMaker) -> None:
        """Round by round, so that no more competitors are made than the limit leaves room for."""
        queues = [
            sorted((c for c in group if c.verdict == "correct" and self._unsure(c)), key=_confidence)
            for group in self.groups
        ]
        self.counts["attempts_low_confidence_correct"] += sum(map(len, queues))
        while True:
            asked: list[tuple[int, Candidate]] = []
            for row, queue in enumerate(queues):
                room = self.config.max_pairs_per_prefix - len(self.pairs[row])
                asked += [(row, candidate) for candidate in queue[:room]]
                del queue[:room]
            if not asked:
                break
            rivals = competitors([candidate for _, candidate in asked], self.config.competitor)
            for (row, candidate), rival in zip(asked, rivals, strict=True):
                self._add_rival(row, candidate, rival)
        self.counts["over_limit"] += sum(map(len, queues))

    def _unsure(self, candidate: Candidate) -> bool:
        return self.tau is not None and _confidence(candidate) < self.tau

    def _add_rival(self, row: int, candidate: Candidate, rival: Rival | NoCompetitor) -> None:
        if isinstance(rival, NoCompetitor):
            self.counts[f"competitor_{rival.reason}"] += 1
        elif self.config.competitor == "step" and rival.verdict != "wrong":
            self.counts[f"competitor_{rival.verdict}"] += 1
        elif (candidate.place, rival.text.strip()) in self.correct:
            same = candidate.text.strip() == rival.text.strip()
            self.counts["competitor_equal" if same else "competitor_known_correct"] += 1
        else:
            self._add(row, "low_confidence_correct", candidate, rival)

    def _add(self, row: int, kind: PairKind, chosen: Candidate, rejected: Rival) -> None:
        texts = (
            chosen.prompt_ids or chosen.prompt,
            stable_hash(chosen.prefix_ids),
            chosen.text.strip(),
            rejected.text.strip(),
        )
        if len(self.pairs[row]) >= self.config.max_pairs_per_prefix:
            self.counts["over_limit"] += 1
        elif texts in self.seen:
            self.counts["duplicate_pair"] += 1
        else:
            self.seen.add(texts)
            self.counts[f"pairs_{kind}"] += 1
            self.pairs[row].append((kind, chosen, rejected))


def _confidence(candidate: Candidate) -> float:
    assert candidate.confidence is not None  # filter_candidates keeps no other
    return candidate.confidence


def _shared(a: Candidate, b: Candidate) -> int:
    """Tokens that two steps begin with in common."""
    return common_prefix(np.array(a.token_ids), np.array(b.token_ids))


def make_pair(kind: PairKind, chosen: Candidate, rejected: Rival) -> Pair:
    """The pair record; its id is a hash of what it contrasts."""
    ids = (chosen.prompt_ids, chosen.prefix_ids, chosen.token_ids, rejected.token_ids)
    return Pair(
        id=stable_hash(kind, chosen.prompt, chosen.prefix, chosen.text, rejected.text, *map(list, ids)),
        kind=kind,
        prompt=chosen.prompt,
        prefix=chosen.prefix,
        chosen=chosen.text,
        rejected=rejected.text,
        prompt_ids=chosen.prompt_ids,
        prefix_ids=chosen.prefix_ids,
        chosen_ids=chosen.token_ids,
        rejected_ids=rejected.token_ids,
        ends_trace=(chosen.ends_trace, rejected.ends_trace),
        chosen_confidence=chosen.confidence,
        rejected_confidence=rejected.confidence,
        chosen_verdict=chosen.verdict,
        rejected_verdict=rejected.verdict,
        trace_id=chosen.trace_id,
        step_index=chosen.step_index,
    )
