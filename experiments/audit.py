"""Does pruning cut right paths? False prunes by depth, accuracy by threshold, and the bound of an oracle.

    python -m experiments.audit --model=POLICY --input=test.jsonl --out_dir=DIR --calibration=calibration.json
    python -m experiments.audit --model=POLICY --input=test.jsonl --out_dir=DIR --threshold=0.8 --expand=2

Samples --num_branches paths a question without pruning and replays every threshold on them, which is exact while forks are
off. With --expand above 1 the search also runs as it would, forks included, and every branch that it pruned is finished
off the books by one continuation. Writes DIR/audit.json, sweep.{md,csv,json}, depths.md, audit.png; with another threshold
and --overwrite the sampled paths are used again. A calibration promises something about new questions: the summary and
audit.json say how many of these it was made on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation import audit, plots
from caspo_jax.evaluation.audit import AuditedQuestion, finish_pruned
from caspo_jax.evaluation.formats import markdown, plain, write_table
from caspo_jax.evaluation.overlap import used_before
from caspo_jax.evaluation.replay import unpruned
from caspo_jax.evaluation.thresholds import Calibration, beta_binomial_quantile, held_fixed
from caspo_jax.outputs import ROWS
from caspo_jax.records import schema, tree_from_record
from caspo_jax.sampling import CatConfig
from caspo_jax.store import load_records, write_json, write_text
from caspo_jax.training.stages import Policy
from caspo_jax.training.stages.policy import questions_digest
from caspo_jax.types import Question
from experiments import calibrate, calibrations, common, result_files, sampling, verifiers

FLAGS = flags.FLAGS
FILES = ("audit.json", "sweep.md", "sweep.csv", "sweep.json", "depths.md", "audit.png")
SWEEP = {
    "threshold": "threshold",
    "accuracy": "accuracy",
    "accuracy_low": "low",
    "accuracy_high": "high",
    "tokens": "tokens",
    "pruned": "pruned",
    "false_prunes": "right paths pruned",
    "right_among_pruned": "right among pruned",
    "lost": "questions that lost all",
}
DEPTHS = {
    "depth": "depth",
    "right_paths": "right paths",
    "false_prunes": "of them pruned here",
    "wrong_paths": "wrong paths",
    "true_prunes": "of them pruned here ",
}


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    common.define_decoding_flags(temperature=0.7)
    common.define_question_flags()
    common.define_answer_flags()
    common.define_cat_flags()
    FLAGS["num_samples"].help = "refused here: --num_branches says how many paths a question has"
    calibrations.define_flag()
    flags.DEFINE_string(
        "input",
        None,
        "JSONL of questions with gold answers, other ones than the calibration's",
        required=True,
    )
    flags.DEFINE_string("out_dir", None, "where everything goes", required=True)
    FLAGS.set_default("expand", 1)


def main() -> None:
    """Audit a search."""
    if FLAGS["num_samples"].present:
        raise UserError("--num_samples does not go with audit: use --num_branches")
    calibration = calibrations.load()
    questions = common.load_questions(FLAGS.input, need_gold=True)
    policy = common.load_policy()
    config = calibrations.applied(calibration, calibrations.search_config(policy, questions), policy)
    held_fixed(config)
    out = Path(FLAGS.out_dir)
    manifest = result_files.claim_files(
        [out / name for name in FILES],
        "audit",
        settings(policy, questions, config),
        {"calibration": FLAGS.calibration},
        result_files.folder_manifest(out, out / FILES[0]),
        ROWS,
    )
    asked = calibrate.sample_unpruned(policy, questions, unpruned(config), out / "unpruned", votes=True)
    found = replayed(policy, asked, config)
    lost = lost_questions(asked, found["chosen"])
    if calibration is not None:
        found["guarantee"] = lost | guarantee(calibration, lost["answerable"], questions)
    if config.expand > 1:
        found["with_forks"] = with_forks(policy, questions, config, out)
    write(found, out)
    manifest.finish(questions=len(asked), thresholds=len(found["sweep"]))
    common.closing(f"audit in {out}", summary(found, lost))


def replayed(policy: Policy, asked: Sequence[AuditedQuestion], config: CatConfig) -> dict[str, Any]:
    """What pruning does to the sampled paths, at every threshold and at the search's own, as JSON."""
    _, equal = common.answer_functions(policy)
    rows = audit.threshold_sweep(
        asked,
        sorted({*audit.sweep_thresholds(asked), config.threshold}),
        method=config.vote,
        gamma=config.gamma,
        min_live=config.min_live,
        equivalent=equal,
    )
    return {
        "threshold": config.threshold,
        "chosen": next(row for row in rows if row["threshold"] == config.threshold),
        "oracle": audit.oracle_prune(asked),
        "depths": audit.false_prunes_by_depth(asked, config.threshold, config.min_live),
        "sweep": rows,
        "questions": len(asked),
    }


def lost_questions(asked: Sequence[AuditedQuestion], chosen: Mapping[str, float]) -> dict[str, int]:
    """How many questions have a right path, and how many of these lose all of them."""
    answerable = sum(any(path.correct for path in question.paths) for question in asked)
    return {"answerable": answerable, "lost": round(chosen["lost"] * answerable) if answerable else 0}


def guarantee(calibration: Calibration, answerable: int, questions: Sequence[Question]) -> dict[str, Any]:
    """What the calibration promises of so many answerable questions, and how many of the questions it was made on."""
    prompts = calibration.prompts
    return {
        "most_expected": beta_binomial_quantile(0.975, answerable, calibration.rank, calibration.answerable),
        "alpha": calibration.alpha,
        "calibration_questions": len(used_before(questions, prompts)) if prompts else None,
    }


def write(found: Mapping[str, Any], out: Path) -> None:
    """All of FILES; the tables are printed too."""
    sweep, depths = markdown(found["sweep"], SWEEP), markdown(found["depths"], DEPTHS)
    write_table(out / "sweep", found["sweep"], SWEEP)
    write_text(out / "depths.md", depths + "\n")
    write_json(out / "audit.json", plain({"schema": schema("audit"), **found}))
    plots.plot_audit(found["sweep"], found["depths"], found["oracle"], found["threshold"], out / "audit.png")
    common.say(f"{sweep}\n\n{depths}")


def summary(found: Mapping[str, Any], lost: Mapping[str, int]) -> dict[str, str]:
    """The closing lines."""
    never, chosen, oracle = found["sweep"][0], found["chosen"], found["oracle"]
    lines = {
        "threshold": f"{found['threshold']:.6g}",
        "accuracy": f"{chosen['accuracy']:.3f} at {chosen['tokens']:.0f} tokens a question",
        "never pruning": f"{never['accuracy']:.3f} at {never['tokens']:.0f} tokens",
        "oracle pruning": f"{oracle['accuracy']:.3f} at {oracle['tokens']:.0f} tokens",
        "right paths pruned": f"{chosen['false_prunes']:.3f}",
        "lost every right path": f"{lost['lost']} of {lost['answerable']}",
    }
    left_out = [
        f"--{name}" for name in ("num_answers", "token_budget", "stop_decided") if FLAGS[name].present
    ]
    if left_out:
        lines["not in the sweep"] = ", ".join(left_out)
    if promised := found.get("guarantee"):
        limit, alpha = promised["most_expected"], promised["alpha"]
        lines["97.5 % point"] = f"{limit} (beta-binomial, alpha = {alpha})"
        lines |= seen_before(promised["calibration_questions"], found["questions"])
    if forks := found.get("with_forks"):
        share = forks["right_among_pruned"]
        lines["with forks"] = f"{forks['pruned']:,} pruned, {share:.3f} of them would end right"
    return lines


def seen_before(shared: int | None, questions: int) -> dict[str, str]:
    """A line of the closing summary where the threshold was, or may have been, chosen on these very questions."""
    if shared == 0:
        return {}
    said = "the 97.5 % point and the promise are for new questions only"
    if shared is None:
        return {"calibration's questions": f"not named in its file; {said}"}
    return {"calibration's questions": f"{shared} of these {questions}: {said}"}


def settings(policy: Policy, questions: Sequence[Question], config: CatConfig) -> dict[str, Any]:
    """What decides the figures beside the calibration, for the manifest."""
    return common.instruction_setting() | {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "questions": questions_digest(questions),
        "search": dataclasses.asdict(config),
        "seed": FLAGS.seed,
        "batch_size": FLAGS.batch_size,
        "answers": verifiers.answer_kind(policy),
    }


def with_forks(policy: Policy, questions: Sequence[Question], config: CatConfig, out: Path) -> dict[str, Any]:
    """The search as it runs, and what its pruned branches would have become, by depth."""
    extract, equal = common.answer_functions(policy)
    trees = out / "searched.trees.jsonl"
    sampling.sample(
        policy,
        questions,
        out / "searched.traces.jsonl",
        config,
        label="search with forks",
        strategy="cat",
        trees=trees,
    )
    fallen = finish_pruned(
        policy.model,
        policy.tokenizer,
        questions,
        load_records(trees, tree_from_record),
        dataclasses.replace(config.sample, num_samples=1),
        jax.random.key(FLAGS.seed + 1),
        extract=extract,
        equal=equal,
        batch_size=FLAGS.batch_size,
    )
    right = np.array([row["correct"] for row in fallen], np.float64)
    depth = np.array([row["depth"] for row in fallen], np.int64)
    by_depth = [
        {
            "depth": int(d),
            "pruned": int((depth == d).sum()),
            "right_among_pruned": float(right[depth == d].mean()),
        }
        for d in sorted(set(depth.tolist()))
    ]
    share = float(right.mean()) if right.size else float("nan")
    return {"pruned": len(fallen), "right_among_pruned": share, "by_depth": by_depth}


if __name__ == "__main__":
    define_flags()
    common.run(main)
