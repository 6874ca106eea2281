"""Questions to traces: one output or several for each question, by sampling or by search.

Input, one JSON object a line: `id` and `question` (or `problem`, `instruction`), `prompt`, or `prompt_ids`; the gold
answer, if any, in `gold` or `answer`. Output: one trace a line. The strategies that vote (self_consistency, cat) also
write OUTPUT.answers.jsonl, one answer a question.

    python -m experiments.generate --model=POLICY --input=questions.jsonl --output=traces.jsonl --strategy=greedy
    python -m experiments.generate --model=POLICY --input=questions.jsonl --output=traces.jsonl \\
        --strategy=sample --num_samples=8 --temperature=0.7
    python -m experiments.generate --model=POLICY --input=questions.jsonl --output=answers.jsonl \\
        --strategy=cat --num_branches=4 --threshold=0.8
    python -m experiments.generate ... --strategy=cat --calibration=calibration.json     # threshold with a guarantee
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import with_intervention
from caspo_jax.records import trace_from_record
from caspo_jax.store import each_record, read_jsonl
from experiments import calibrations, common, sampling

FLAGS = flags.FLAGS
STRATEGIES = ("greedy", "sample", "self_consistency", "cat", "explore")


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    common.define_decoding_flags()
    common.define_question_flags()
    common.define_answer_flags()
    common.define_cat_flags()
    calibrations.define_flag()
    flags.DEFINE_string("input", None, "JSONL of questions", required=True)
    flags.DEFINE_string("output", None, "JSONL of traces that is written", required=True)
    flags.DEFINE_enum(
        "strategy",
        "sample",
        STRATEGIES,
        "greedy: one output; sample: --num_samples outputs; self_consistency: the same, and the majority answer; "
        "cat: confidence-aware tree search; explore: tree without pruning, for training data",
    )
    flags.DEFINE_bool("token_stats", True, "keep per-token log-probs and entropies in the traces")
    flags.DEFINE_string(
        "intervention",
        None,
        "ask under a prompt intervention on expressed confidence: blank, basic, genuine, human, perception, "
        "self_monitoring, self_correction, evidence_gap, hedge_scale",
    )
    flags.DEFINE_string("trees", None, "also write the search trees to this JSONL (cat, explore)")


def main() -> None:
    """Generate a file."""
    strategy, searching = FLAGS.strategy, FLAGS.strategy in ("cat", "explore")
    answers = Path(f"{FLAGS.output}.answers.jsonl") if strategy in ("self_consistency", "cat") else None
    common.check_outputs(("output", "trees"), derived={"the answers": answers})
    check_flags(strategy, searching)
    calibration = calibrations.load()
    questions = common.load_questions(FLAGS.input)
    policy = common.load_policy()
    if FLAGS.intervention is not None:
        questions = [with_intervention(q, FLAGS.intervention, policy.tokenizer) for q in questions]
    changes = {"temperature": 0.0} if strategy == "greedy" else {"num_samples": 1} if searching else {}
    sample = common.sample_config(policy, questions, **changes)
    if calibration is None:
        common.say_recommended(policy, sample)
    config: Any = common.cat_config(policy, sample) if searching else sample
    config = calibrations.applied(calibration, config, policy)
    sampling.sample(
        policy,
        questions,
        FLAGS.output,
        config,
        label=strategy,
        strategy=strategy,
        token_stats=FLAGS.token_stats,
        trees=FLAGS.trees,
        answers=answers,
    )
    rows = summary(Path(FLAGS.output), answers, questions, strategy)
    if strategy == "cat":
        rows["threshold"] = f"{config.threshold:.6g}" if config.threshold else "0: never prune"
    rows |= calibrations.caveat(calibration, config)
    common.closing(f"{strategy} traces in {FLAGS.output}", rows)


def check_flags(strategy: str, searching: bool) -> None:
    """Refuses flags that the strategy would not heed."""
    if FLAGS.trees and not searching:
        raise UserError(f"--trees goes with --strategy=cat or explore, not {strategy}")
    if FLAGS.calibration and strategy != "cat":
        raise UserError(f"--calibration goes with --strategy=cat, not {strategy}")
    given = [flag for flag in common.CAT_FLAGS if FLAGS[flag].present]
    if given and not searching:
        raise UserError(f"--{given[0]} goes with --strategy=cat or explore, not {strategy}")
    if strategy == "explore" and (pruning := [f for f in ("threshold", "prune", "min_live") if f in given]):
        raise UserError(f"--{pruning[0]} goes with --strategy=cat: an exploration never prunes")
    if searching and FLAGS["num_samples"].present:
        raise UserError(f"--num_samples does not go with --strategy={strategy}: use --num_branches")
    if strategy == "greedy" and FLAGS["temperature"].present and FLAGS.temperature != 0:
        raise UserError(f"--temperature={FLAGS.temperature} contradicts --strategy=greedy")


def summary(output: Path, answers: Path | None, questions: list[Any], strategy: str) -> dict[str, Any]:
    """Counts, tokens and accuracy of a file of traces: of the answers that were voted for, where there are any.

    The tokens are those that were decoded, as the answers say; paths of a tree share their beginnings, and no path holds
    those of pruned branches. Of an exploration, which has no answers, they are called those in the traces.
    """
    traces = tokens = cut = 0
    judged: list[bool] = []
    for trace in each_record(output, trace_from_record):
        traces += 1
        tokens += len(trace.token_ids)
        cut += trace.finish_reason == "length"
        judged += [] if trace.correct is None else [trace.correct]
    rows: dict[str, Any] = {
        "questions": len(questions),
        "traces": traces,
        "tokens in the traces" if strategy == "explore" else "tokens": tokens,
        "cut at the limit": cut,
    }
    if answers is not None:
        records = [record for _, record in read_jsonl(answers)]
        voted = [record["correct"] for record in records if record["correct"] is not None]
        rows["tokens"] = sum(record["tokens"] for record in records)
        rows |= _share("accuracy", voted, "answers") | _share("right paths", judged, "paths")
    else:
        rows |= _share("accuracy", judged, "traces")
    return rows


def _share(label: str, right: Sequence[bool], what: str) -> dict[str, str]:
    if not right:
        return {}
    return {label: f"{sum(right) / len(right):.3f} of {len(right):,} {what} with a gold answer"}


if __name__ == "__main__":
    define_flags()
    common.run(main)
