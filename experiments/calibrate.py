"""CaT's pruning threshold at a given alpha, by split conformal calibration on held-out questions with gold answers.

    python -m experiments.calibrate --model=POLICY --input=held_out.jsonl --output=calibration.json --alpha=0.1
    python -m experiments.generate --model=POLICY --input=new.jsonl --output=answers.jsonl --strategy=cat \\
        --calibration=calibration.json

Samples --num_branches paths a question without pruning (OUTPUT.traces.jsonl, OUTPUT.trees.jsonl). A question's score is
the largest, over its right paths, of the smallest pruning confidence at the path's non-final boundaries; the threshold is
the floor(alpha (n + 1))-th smallest score of the n questions that have a right path. Then a new question like these that
has a right path loses all of them to pruning with probability at most alpha. What is not covered: forks or a token
budget that end a question early, and questions of another kind than these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation.audit import AuditedQuestion, audited_questions
from caspo_jax.evaluation.overlap import prompt_digest
from caspo_jax.evaluation.replay import unpruned
from caspo_jax.evaluation.thresholds import (
    Calibration,
    conformal_threshold,
    held_fixed,
    question_score,
    split_rates,
)
from caspo_jax.records import trace_from_record, tree_from_record
from caspo_jax.sampling import CatConfig
from caspo_jax.store import each_record, load_records
from caspo_jax.training.stages import Policy
from caspo_jax.types import Question, Trace
from experiments import calibrations, common, sampling

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    common.define_decoding_flags(temperature=0.7)
    common.define_question_flags()
    common.define_answer_flags()
    common.define_cat_flags()
    FLAGS["threshold"].help = "refused here: the threshold is what calibrate finds"
    FLAGS["num_samples"].help = "refused here: --num_branches says how many paths a question has"
    flags.DEFINE_string(
        "input", None, "JSONL of questions with gold answers, none of them used elsewhere", required=True
    )
    flags.DEFINE_string("output", None, "calibration file (JSON)", required=True)
    flags.DEFINE_float("alpha", 0.1, "share of answerable questions that may lose every right path")
    flags.DEFINE_integer(
        "splits", 1000, "random halves of the questions on which the promise is tried out", lower_bound=1
    )


def check_flags() -> None:
    """Refuses flags that do not go with a calibration: before hours of sampling."""
    if not 0.0 < FLAGS.alpha < 1.0:
        raise UserError(f"--alpha={FLAGS.alpha}: give a share between 0 and 1, both excluded")
    if FLAGS["threshold"].present:
        raise UserError("--threshold is what calibrate finds: drop it")
    if FLAGS["num_samples"].present:
        raise UserError("--num_samples does not go with calibrate: use --num_branches")
    common.check_outputs(("output",))
    calibrations.check_place(FLAGS.output)


def main() -> None:
    """Calibrate."""
    check_flags()
    questions = common.load_questions(FLAGS.input, need_gold=True)
    policy = common.load_policy()
    config = calibrations.search_config(policy, questions)
    fixed = held_fixed(config)
    base = Path(FLAGS.output)
    audited = sample_unpruned(policy, questions, unpruned(config), base)
    scores = np.array([question_score(q.paths) for q in audited])
    found = conformal_threshold(scores, FLAGS.alpha)
    rates = (
        split_rates(scores, FLAGS.alpha, FLAGS.splits, FLAGS.seed) if found.answerable > 1 else np.array([])
    )
    made = Calibration(
        threshold=found.threshold,
        alpha=FLAGS.alpha,
        rank=found.rank,
        answerable=found.answerable,
        questions=len(questions),
        policy=policy.hash,
        search=fixed,
        instruction=common.instruction(),
        prompts=tuple(sorted({prompt_digest(question) for question in questions})),
    )
    made.save(
        base, seed=FLAGS.seed, splits=len(rates), mean_loss_rate=float(rates.mean()) if rates.size else None
    )
    common.closing(f"calibration in {FLAGS.output}", summary(made, rates))


def summary(made: Calibration, rates: np.ndarray) -> dict[str, Any]:
    """The closing lines; `rates` [splits] are the losses on random halves."""
    rows: dict[str, Any] = {
        "threshold": f"{made.threshold:.6g}" if made.rank else "0: never prune",
        "questions": made.questions,
        "with a right path": made.answerable,
        "rank k": made.rank,
    }
    if not made.rank:
        rows["warning"] = (
            f"alpha = {FLAGS.alpha} needs at least {int(np.ceil(1 / FLAGS.alpha)) - 1} questions with a right path"
        )
    if rates.size:
        low, high = np.quantile(rates, [0.05, 0.95])
        rows[f"loss on {rates.size:,} random halves"] = (
            f"{rates.mean():.4f} on average (at most {FLAGS.alpha}), {low:.3f} to {high:.3f} in nine of ten"
        )
    return rows


def sample_unpruned(
    policy: Policy, questions: Sequence[Question], config: CatConfig, base: Path, *, votes: bool = False
) -> list[AuditedQuestion]:
    """K unpruned paths a question, from files beside `base` where they are there already.

    Their traces have no more than an answer and its verdict, and with `votes` what a vote weighs.
    """
    weighed = votes and config.vote == "sequence"
    traces, trees = (base.with_name(f"{base.name}.{kind}.jsonl") for kind in ("traces", "trees"))
    sampling.sample(policy, questions, traces, config, label="sample", strategy="cat", trees=trees)
    return audited_questions(
        load_records(traces, lambda record: lean(trace_from_record(record), weighed)),
        each_record(trees, tree_from_record),
        config.prune,
    )


def lean(trace: Trace, weighed: bool) -> Trace:
    """What is read of a path: its answer and verdict, and, `weighed` by a vote, its tokens' log-probs. All would be gigabytes."""
    trace = dataclasses.replace(trace, prompt_ids=(), text="", entropy=None)
    return trace if weighed else dataclasses.replace(trace, token_ids=(), logprob=None)


if __name__ == "__main__":
    define_flags()
    common.run(main)
