"""What `quickstart` says of a policy: metrics of its sampled traces, strategies, and its differences to the base."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.evaluation import tables as tables_module
from caspo_jax.evaluation.strategies import VOTE_CONFIDENCE, Outcome, StrategyConfig, run_all
from caspo_jax.evaluation.tables import Tables, tabulate
from caspo_jax.metrics import mean_statistic, paired_difference
from caspo_jax.models import token_bytes
from caspo_jax.models.weights import shallow_copy
from caspo_jax.records import finite
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.steps import Verifier, verify_traces, with_answer
from caspo_jax.steps.annotate import segment_by
from caspo_jax.types import CatResult, Equal, Extract, Question, Trace

KeepTraces = Callable[[Sequence[Trace]], None]
KeepResults = Callable[[Sequence[CatResult]], None]

# What the summary reports of every policy: bias, ECE and Brier score are of exp(-entropy), and with `sum_logprob_` of
# exp(sum of log-probs). The tables know more.
_LEVELS = ("bias", "ece", "brier", "bias_scaled", "ece_scaled", "brier_scaled")
REPORTED = (
    "step_accuracy",
    "first_error_accuracy",
    "answer_accuracy",
    "flawed_correct_rate",
    "all_steps_right",
    "entropy_auroc",
    "logprob_auroc",
    "within_prefix_auroc",
    "within_prefix_logprob_auroc",
    "within_question_auroc",
    "within_question_logprob_auroc",
    "sum_logprob_auroc",
    "within_prefix_sum_logprob_auroc",
    "within_question_sum_logprob_auroc",
    "entropy_gap",
    *_LEVELS,
    *(f"sum_logprob_{name}" for name in _LEVELS),
    "mean_entropy",
    "tokens_per_trace",
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured of a policy."""

    name: str
    path: str
    tables: Tables
    strategies: Mapping[str, Outcome]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def sample_tables(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    sample: SampleConfig,
    key: jax.Array,
    *,
    verifier: Verifier,
    extract: Extract,
    equal: Equal,
    keep: KeepTraces | None = None,
    **run: Any,
) -> Tables:
    """Sample, annotate and flatten `sample.num_samples` traces a question; `keep` is given the annotated traces."""
    traces = generate(model, tokenizer, questions, sample, key, step_confidence=VOTE_CONFIDENCE, **run)
    ids = [q.id for q in questions for _ in range(sample.num_samples)]
    spelled = token_bytes(tokenizer, model.config.vocab_size)
    segmented, likelihoods = [], []
    for trace in traces:
        both = segment_by(trace, spelled, (VOTE_CONFIDENCE, "sum_logprob"), sample.step_delimiter)
        segmented.append(with_answer(both[0], extract, equal))
        likelihoods.append([step.confidence for step in both[1].steps])
    annotated = verify_traces(segmented, verifier)
    if keep is not None:
        keep(annotated)
    return tabulate(annotated, ids, likelihoods)


def evaluate(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    sample: SampleConfig,
    key: jax.Array,
    *,
    name: str,
    path: str,
    verifier: Verifier,
    extract: Extract,
    equal: Equal,
    strategies: StrategyConfig | None = None,
    keep_traces: KeepTraces | None = None,
    keep_results: KeepResults | None = None,
    **run: Any,
) -> Evaluation:
    """Metrics of sampled traces and, where wanted, every strategy.

    Args:
      model: the policy.
      tokenizer: its own.
      questions: with gold answers.
      sample: of the traces that are measured; strategies have settings of their own.
      key: the same gives every policy the same draws.
      name: what the record calls the policy.
      path: where the policy is, for the record.
      verifier: of the steps.
      extract: text -> answer.
      equal: (gold, answer) -> are they equal?
      strategies: none is run without.
      keep_traces: is given the annotated traces that were measured.
      keep_results: is given CaT's searches.
      run: keywords of `generate` and `cat_search`, such as batch_size.
    """
    sample_key, strategy_key = jax.random.split(key)
    asked = (model, tokenizer, questions)
    tables = sample_tables(
        *asked,
        sample,
        sample_key,
        verifier=verifier,
        extract=extract,
        equal=equal,
        keep=keep_traces,
        **run,
    )
    outcomes: Mapping[str, Outcome] = {}
    if strategies is not None:
        outcomes = run_all(*asked, strategies, strategy_key, extract, equal, keep_results, **run)
    return Evaluation(
        name=name,
        path=path,
        tables=tables,
        strategies=outcomes,
        settings={"temperature": sample.temperature},
    )


def tempered(model: Any, temperature: float) -> Any:
    """The model whose distribution at temperature 1 is this one's at `temperature`: its last norm scaled by 1/T."""
    scaled = shallow_copy(model)
    scaled.final_norm[...] = scaled.final_norm[...] / jnp.asarray(temperature, scaled.final_norm[...].dtype)
    return scaled


def matched_temperature(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    sample: SampleConfig,
    target: float,
    key: jax.Array,
    *,
    iterations: int = 7,
    **run: Any,
) -> float:
    """The temperature at which the policy's own samples have `target` nats of entropy a token, by bisection.

    The entropy is that of the distribution sampled from, averaged over the sampled tokens.
    """

    def mean_entropy(temperature: float) -> float:
        traces: list[Trace] = generate(tempered(model, temperature), tokenizer, questions, sample, key, **run)
        return float(np.concatenate([np.asarray(t.entropy) for t in traces]).mean())

    low, high = 0.1, 1.5
    for _ in range(iterations):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if mean_entropy(middle) < target else (low, middle)
    return (low * high) ** 0.5


def policy_record(evaluation: Evaluation, baseline: Evaluation | None, draws: int = 1000) -> dict[str, Any]:
    """One entry of the summary's `policies`: metrics, intervals, strategies, paired differences to the baseline."""
    values = tables_module.values(evaluation.tables)
    found = tables_module.intervals(evaluation.tables, draws=draws)
    record: dict[str, Any] = {"name": evaluation.name, "path": evaluation.path, **evaluation.settings}
    record |= {name: finite(values[name]) for name in REPORTED if name in values}
    record |= tables_module.group_counts(evaluation.tables)
    record["strategies"] = {name: o.record() for name, o in evaluation.strategies.items()}
    record["intervals"] = {name: i for name, i in tables_module.records(found).items() if name in REPORTED}
    record["paired_with_base"] = {} if baseline is None else paired_record(evaluation, baseline, draws)
    return record


def paired_record(evaluation: Evaluation, baseline: Evaluation, draws: int = 1000) -> dict[str, Any]:
    """{metric: {difference, low, high}} of every metric and of every strategy's accuracy, paired by question."""
    pairs = tables_module.paired(evaluation.tables, baseline.tables, draws=draws)
    kept = {*REPORTED, "flawed_correct_rate_ratio"}
    record = {name: tables_module.difference_record(i) for name, i in pairs.items() if name in kept}
    for name, outcome in evaluation.strategies.items():
        if name in baseline.strategies:
            groups = np.arange(len(outcome.correct))
            interval = paired_difference(
                mean_statistic(outcome.correct),
                mean_statistic(baseline.strategies[name].correct),
                groups,
                draws=draws,
            )
            record[f"{name}_accuracy"] = tables_module.difference_record(interval)
    return record
