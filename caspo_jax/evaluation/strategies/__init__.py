"""Ways to answer a question with a policy, each with its accuracy and its cost."""

from caspo_jax.evaluation.strategies.at_budget import (
    VOTE_CONFIDENCE,
    Outcome,
    StrategyConfig,
    matched_counts,
    pool_votes,
    run_all,
    run_cat,
    run_greedy,
    sample_pool,
    score,
)
from caspo_jax.evaluation.strategies.base import Answer, Context, Settings
from caspo_jax.evaluation.strategies.registry import STRATEGIES, Found, check_names, families, run_family

__all__ = [
    "STRATEGIES",
    "VOTE_CONFIDENCE",
    "Answer",
    "Context",
    "Found",
    "Outcome",
    "Settings",
    "StrategyConfig",
    "check_names",
    "families",
    "matched_counts",
    "pool_votes",
    "run_all",
    "run_cat",
    "run_family",
    "run_greedy",
    "sample_pool",
    "score",
]
