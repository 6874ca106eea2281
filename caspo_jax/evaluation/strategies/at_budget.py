"""What `quickstart` holds a policy's CaT against: greedy, and votes over plain samples at the tokens that CaT spent.

Arrays over questions, from traces at hand; `evaluate` has these strategies, and more, in the other files of this folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from caspo_jax.sampling import CatConfig, SampleConfig, cat_search, generate, vote
from caspo_jax.types import CatResult, Equal, Extract, Question, Trace

VOTE_CONFIDENCE = "mean_logprob"  # of steps; siblings hardly differ in entropy


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a strategy did on Q questions."""

    correct: np.ndarray  # [Q] float64
    tokens: np.ndarray  # [Q] float64, decoded tokens
    settings: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """Accuracy, tokens and settings as JSON."""
        return {
            "accuracy": float(self.correct.mean()),
            "tokens_per_question": float(self.tokens.mean()),
            "settings": dict(self.settings),
        }


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
    """Settings of the comparison; chosen on other questions and seeds than those it is reported on."""

    vote_temperature: float = 0.7  # of the sampled pool behind majority, the votes and self-consistency
    pool: int = 10  # samples a question in the pool
    published: bool = True  # also CaT as published: entropy, pruned by path
    gamma: float = 25.0  # exponent of the confidence vote
    cat: CatConfig = dataclasses.field(default_factory=CatConfig)


def score(answers: Sequence[str | None], questions: Sequence[Question], equal: Equal) -> np.ndarray:
    """[Q] 1 where the answer equals the gold one."""
    return np.array([a is not None and equal(str(q.gold), a) for a, q in zip(answers, questions)], np.float64)


def matched_counts(pool: np.ndarray, budget: float) -> np.ndarray:
    """How many samples each question may use so that the mean cost comes to `budget` tokens a question.

    The counts differ by at most one between questions, are spread evenly, and lie between 1 and the pool's size. What
    they cost is at most `budget`, unless one sample each costs more: .05 % below it on average in simulations of 200
    questions, .3 % of 24.

    Args:
      pool: [Q, n] tokens of the samples.
      budget: tokens a question.
    """
    questions, size = pool.shape
    cumulative = np.cumsum(pool, axis=1)

    def counts(mean: float) -> np.ndarray:
        return np.clip(_spread(mean, questions), 1, size)

    def affordable(mean: float) -> bool:
        return bool(cumulative[np.arange(questions), counts(mean) - 1].mean() <= budget)

    low, high = 1.0, float(size)
    if affordable(high):
        return counts(high)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    return counts(low)


def _spread(mean: float, questions: int) -> np.ndarray:
    edges = np.floor(np.arange(questions + 1) * mean + 1e-9).astype(int)
    return np.diff(edges)


def pool_votes(
    pool: Sequence[Sequence[Trace]],
    counts: np.ndarray,
    method: Any,
    questions: Sequence[Question],
    extract: Extract,
    equal: Equal,
    gamma: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy [Q] and tokens [Q] of a vote over the first counts[q] samples of each question."""
    answers, tokens = [], []
    for traces, count in zip(pool, counts, strict=True):
        used = traces[:count]
        answers.append(vote(used, method, extract=extract, equivalent=equal, gamma=gamma)[0])
        tokens.append(sum(len(t.token_ids) for t in used))
    return score(answers, questions, equal), np.array(tokens, np.float64)


def run_greedy(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    sample: SampleConfig,
    extract: Extract,
    equal: Equal,
    **run: Any,
) -> Outcome:
    """One greedy output a question."""
    traces = generate(model, tokenizer, questions, sample.greedy(), jax.random.key(0), **run)
    return Outcome(
        score([extract(t.text) for t in traces], questions, equal),
        np.array([len(t.token_ids) for t in traces], np.float64),
        {"temperature": 0.0},
    )


def run_cat(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    config: CatConfig,
    key: jax.Array,
    extract: Extract,
    equal: Equal,
    keep: Callable[[Sequence[CatResult]], None] | None = None,
    **run: Any,
) -> Outcome:
    """CaT with the vote of its config; `keep` is given the searches."""
    results = cat_search(model, tokenizer, questions, config, key, extract=extract, equivalent=equal, **run)
    if keep is not None:
        keep(results)
    return Outcome(
        score([r.answer for r in results], questions, equal),
        np.array([r.tokens for r in results], np.float64),
        {
            "num_branches": config.num_branches,
            "root_branches": config.roots,
            "threshold": config.threshold,
            "expand": config.expand,
            "num_answers": config.answers,
            "confidence": config.step_confidence,
            "path_confidence": config.path_confidence,
            "prune": config.prune,
            "vote": config.vote,
            "gamma": config.gamma,
            "temperature": config.sample.temperature,
        },
    )


def sample_pool(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    sample: SampleConfig,
    count: int,
    key: jax.Array,
    **run: Any,
) -> list[list[Trace]]:
    """`count` samples a question, with the confidence that the confidence vote reads."""
    config = dataclasses.replace(sample, num_samples=count)
    traces = generate(model, tokenizer, questions, config, key, step_confidence=VOTE_CONFIDENCE, **run)
    return [list(traces[i : i + count]) for i in range(0, len(traces), count)]


def run_all(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    config: StrategyConfig,
    key: jax.Array,
    extract: Extract,
    equal: Equal,
    keep: Callable[[Sequence[CatResult]], None] | None = None,
    **run: Any,
) -> dict[str, Outcome]:
    """Greedy, CaT, and the votes over plain samples: at CaT's tokens, and self-consistency with the whole pool.

    `keep` is given CaT's searches, for those who want to look at the trees.
    """
    cat_key, pool_key = jax.random.split(key)
    outcomes = {
        "greedy": run_greedy(model, tokenizer, questions, config.cat.sample, extract, equal, **run),
        "cat": run_cat(model, tokenizer, questions, config.cat, cat_key, extract, equal, keep, **run),
    }
    paper = dataclasses.replace(config.cat, step_confidence="entropy", prune="path")
    if config.published and paper != config.cat:
        outcomes["cat_paper"] = run_cat(model, tokenizer, questions, paper, cat_key, extract, equal, **run)
    sample = dataclasses.replace(config.cat.sample, temperature=config.vote_temperature)
    pool = sample_pool(model, tokenizer, questions, sample, config.pool, pool_key, **run)
    lengths = np.array([[len(t.token_ids) for t in traces] for traces in pool])
    counts = matched_counts(lengths, outcomes["cat"].tokens.mean())
    settings = {"temperature": config.vote_temperature, "samples_per_question": float(counts.mean())}
    for name, method in (
        ("majority", "majority"),
        ("confidence_vote", "confidence"),
        ("sequence_vote", "sequence"),
    ):
        gamma = config.gamma if method == "confidence" else 1.0
        correct, tokens = pool_votes(pool, counts, method, questions, extract, equal, gamma)
        extra = {"gamma": gamma} if method == "confidence" else {}
        outcomes[name] = Outcome(correct, tokens, settings | extra)
    everything = np.full(len(questions), config.pool)
    correct, tokens = pool_votes(pool, everything, "majority", questions, extract, equal)
    outcomes["self_consistency"] = Outcome(
        correct, tokens, {"temperature": config.vote_temperature, "samples_per_question": config.pool}
    )
    return outcomes
