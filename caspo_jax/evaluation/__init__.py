"""Policies held against each other: sampled metrics, strategies at matched cost, plots."""

from caspo_jax.evaluation.compare import (
    Evaluation,
    evaluate,
    matched_temperature,
    paired_record,
    policy_record,
    sample_tables,
    tempered,
)
from caspo_jax.evaluation.strategies import Outcome, StrategyConfig, run_all
from caspo_jax.evaluation.tables import Tables, tabulate

__all__ = [
    "Evaluation",
    "Outcome",
    "StrategyConfig",
    "Tables",
    "evaluate",
    "matched_temperature",
    "paired_record",
    "policy_record",
    "run_all",
    "sample_tables",
    "tabulate",
    "tempered",
]
