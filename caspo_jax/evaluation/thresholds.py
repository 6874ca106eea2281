"""CaT's threshold by split conformal calibration: at most alpha of the answerable questions lose every right path."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.evaluation.replay import RecordedPath
from caspo_jax.metrics.arrays import vector
from caspo_jax.records import check_schema, schema
from caspo_jax.sampling import CatConfig
from caspo_jax.store import read_json, write_json

RULES = ("path", "last")  # `relative` depends on which branches are still there, so no replay bounds it


class Conformal(NamedTuple):
    """A threshold and what it promises."""

    threshold: float  # prune strictly below; 0 never prunes
    rank: int  # k = floor(alpha (n + 1))
    answerable: int  # n, calibration questions with a right path


def question_score(paths: Sequence[RecordedPath]) -> float:
    """The largest threshold at which the question keeps a right path; NaN if it has none.

    The maximum over its right paths of the smallest pruning confidence at the path's non-final boundaries (+inf for a
    path without one). At a threshold t the question loses every right path to pruning exactly if its score is < t.
    """
    scores = [path.lowest for path in paths if path.correct]
    return max(scores) if scores else math.nan


def conformal_threshold(scores: Any, alpha: float) -> Conformal:
    """The k-th smallest score, k = floor(alpha (n + 1)), of the n calibration questions with a right path.

    A new exchangeable question with a right path then loses all of them to pruning with probability at most
    k / (n + 1) <= alpha, marginally over draws of the calibration questions; given one draw the rate is
    Beta(k, n + 1 - k) where scores do not tie, and below that where they do.

    Args:
      scores: [Q] from `question_score`; NaN (no right path) is left out.
      alpha: share of answerable questions that may lose every right path, in (0, 1).

    Returns:
      Conformal; rank 0 (too few questions for this alpha) never prunes.

    Raises:
      UserError: alpha outside (0, 1).
    """
    if not 0.0 < alpha < 1.0:
        raise UserError(f"alpha = {alpha}: give a number between 0 and 1")
    values = np.asarray(scores, np.float64)
    values = np.sort(values[~np.isnan(values)])
    # The product may lie a rounding error below the whole number that it is; an alpha of nearly 1 is none of n + 1.
    rank = min(math.floor(alpha * (values.size + 1) + 1e-9), values.size)
    if rank == 0:
        return Conformal(0.0, 0, values.size)
    threshold = values[rank - 1]
    if np.isinf(threshold):
        # Every threshold up to +inf keeps the promise; the largest score that was seen is one that JSON can hold.
        finite = values[np.isfinite(values)]
        threshold = finite[-1] if finite.size else 0.0
    return Conformal(float(threshold), rank, values.size)


def loss_rate(scores: Any, threshold: float) -> float:
    """Share of the questions with a right path that lose all of them; NaN where none has one."""
    values = np.asarray(scores, np.float64)
    values = values[~np.isnan(values)]
    return float((values < threshold).mean()) if values.size else float("nan")


def split_rates(scores: Any, alpha: float, splits: int = 1000, seed: int = 0) -> np.ndarray:
    """Loss rates [splits] on one random half of the questions at the threshold calibrated on the other.

    Halves of the questions with a right path. The splits share their questions, so the spread of their mean is that of
    the questions drawn, not of independent trials.
    """
    values = np.asarray(scores, np.float64)
    values = vector(values[~np.isnan(values)], "scores")
    if values.size < 2:
        raise UserError(f"{values.size} questions have a right path: random splits need at least 2")
    rng = np.random.default_rng(seed)
    rates = np.empty(splits)
    for i in range(splits):
        order = rng.permutation(values.size)
        first, second = order[: values.size // 2], order[values.size // 2 :]
        rates[i] = loss_rate(values[second], conformal_threshold(values[first], alpha).threshold)
    return rates


def beta_binomial_quantile(level: float, trials: int, rank: int, answerable: int) -> int:
    """Smallest m with P(losses <= m) >= level among `trials` new answerable questions, given one calibration draw.

    Losses are Binomial(trials, R) with R ~ Beta(rank, answerable + 1 - rank).

    Args:
      level: in (0, 1), 0.975 for the upper end of a 95 % band.
      trials: new questions that have a right path.
      rank: k of the calibration.
      answerable: n of the calibration.
    """
    if rank == 0:
        return 0
    a, b = rank, answerable + 1 - rank

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    total = 0.0
    for m in range(trials + 1):
        choose = -math.log(trials + 1) - log_beta(trials - m + 1, m + 1)
        total += math.exp(choose + log_beta(m + a, trials - m + b) - log_beta(a, b))
        if total >= level:
            return m
    return trials


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A calibrated threshold with everything that it holds for; what `calibrate` writes and `generate` checks."""

    threshold: float
    alpha: float
    rank: int
    answerable: int  # questions with a right path
    questions: int
    policy: str  # hash of the policy
    search: Mapping[str, Any]  # from `held_fixed`
    prompts: tuple[str, ...] = ()  # `prompt_digest` of each question; empty in files of before they were kept
    instruction: str | None = None  # what its questions ended with, where a flag put it there

    def apply(self, config: CatConfig, policy: str, where: str = "calibration") -> CatConfig:
        """The search at the calibrated threshold.

        Raises:
          UserError: another policy, or a setting that differs from the calibration's; names each.
        """
        if policy != self.policy:
            raise UserError(
                f"{where} was made for policy {self.policy[:16]}, this is {policy[:16]}: calibrate this policy"
            )
        here = held_fixed(config)
        differing = [f"{k}: {v!r} then, {here[k]!r} now" for k, v in self.search.items() if here.get(k) != v]
        if differing:
            raise UserError(f"{where} does not hold for this search ({'; '.join(differing)})")
        return dataclasses.replace(config, threshold=self.threshold)

    def save(self, path: str | Path, **more: Any) -> None:
        """Write the file; `more` are figures for the reader."""
        write_json(path, {"schema": schema("calibration"), **dataclasses.asdict(self), **more})

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
          UserError: unreadable, or no calibration.
        """
        record = read_json(path)
        check_schema(record, "calibration")
        fields = [f.name for f in dataclasses.fields(cls) if f.name in record]
        needed = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [name for name in needed if name not in record]
        if missing:
            raise UserError(f"{path}: not a calibration file (lacks {', '.join(missing)})")
        values = {name: record[name] for name in fields}
        return cls(**values | {"prompts": tuple(values.get("prompts", ()))})


def held_fixed(config: CatConfig) -> dict[str, Any]:
    """The settings that decide the K original paths and their pruning confidences, as plain JSON values.

    Raises:
      UserError: a pruning rule that the guarantee does not cover.
    """
    if config.prune not in RULES:
        raise UserError(f"prune={config.prune!r}: the guarantee covers {' and '.join(RULES)}")
    sample = config.sample
    return {
        "branches": config.roots,
        "prune": config.prune,
        "step_confidence": config.step_confidence,
        "path_confidence": config.path_confidence if config.prune == "path" else None,
        "temperature": sample.temperature,
        "top_k": sample.top_k,
        "top_p": sample.top_p,
        "min_p": sample.min_p,
        "max_new_tokens": sample.max_new_tokens,
        "stop": list(sample.stop),
        "step_delimiter": sample.step_delimiter,
        "ignore_eos": sample.ignore_eos,
    }


def outside(config: CatConfig) -> list[str]:
    """What in a search the guarantee does not cover, in words; empty where it covers all.

    Pruning is covered whatever the forks do, since they only take free slots. A search that stops early is not: forks
    that finish can end the question before its own branches do, and so can a token budget or a decided vote.
    """
    notes = []
    # A freed slot is forked into again: beside one branch, K - 1 others may finish at each of its tokens but the last.
    others = (config.num_branches - 1) * (config.sample.max_new_tokens - 1)
    if config.answers < config.roots or (config.expand > 1 and config.answers <= others):
        notes.append(f"the question ends at {config.answers} answers, forks counted in")
    if config.token_budget is not None:
        notes.append(f"the token budget of {config.token_budget}")
    if config.stop_decided:
        notes.append("the question ends once its vote is decided")
    return notes
