"""Policies and strategies compared with each other, and the reports of it.

By the program that needs them:

* `evaluate`, strategies on benchmarks: `benchmarks` (questions, prompts, scorers), `execution` (model-written code in a
  sandbox), `strategies`, `tuning` (their settings), `answer_records` (what is kept of each answer), `results` (tables made of
  those), `curve_plots`; with --traces: `confidence_items`, `confidences`.
* `quickstart` and `noise_sweep`, policies on sampled traces: `compare`, `tables`, `strategies.at_budget`, `plots`.
* `calibrate` and `audit`, CaT's threshold: `replay` (what pruning would have done), `thresholds`, `audit`, `overlap` (which questions
  were used before).
* `faithfulness`: the folder of that name. `verifier_f1`: the file of that name.
* Several: `report` (one HTML page of what a folder holds), `formats` (rows as Markdown, CSV, JSON), `rescoring`
  (statistics of given tokens).
* None: `lm_eval_adapter`, a policy as a model of lm-evaluation-harness.
"""

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
