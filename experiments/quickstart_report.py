"""The quickstart's comparison: base, rounds and controls on the same held-out questions; table, summary, plots."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation import (
    Evaluation,
    StrategyConfig,
    Tables,
    evaluate,
    matched_temperature,
    paired_record,
    plots,
    policy_record,
)
from caspo_jax.outputs import manifest_path
from caspo_jax.store import write_json
from caspo_jax.tasks import Task
from caspo_jax.training.stages import Policy
from caspo_jax.types import Question
from experiments import common, result_files
from experiments.quickstart_samples import Recorder

FLAGS = flags.FLAGS
RESULTS = ("reliability.png", "entropy.png", "strategies.png", "samples", "summary.json", "report.html")
TABLE = {
    "step_accuracy": "step acc",
    "answer_accuracy": "answer acc",
    "flawed_correct_rate": "flawed",
    "entropy_auroc": "H AUROC",
    "within_prefix_logprob_auroc": "lp AUROC|prefix",
    "entropy_gap": "H gap",
    "ece": "ECE",
    "brier_scaled": "Brier scaled",
}
# With the base, below the table.
COMPARED = ("step_accuracy", "answer_accuracy", "entropy_auroc", "brier_scaled")
STRATEGY_ORDER = (
    "greedy",
    "majority",
    "confidence_vote",
    "sequence_vote",
    "cat",
    "cat_paper",
    "self_consistency",
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What every policy is asked, and how: the same questions and keys for all."""

    task: Task
    questions: Sequence[Question]
    settings: Any
    strategies: StrategyConfig
    key: jax.Array
    batch_size: int
    recorder: Recorder

    def run(
        self, name: str, path: Path, policy: Policy, *, strategies: bool, temperature: float = 1.0
    ) -> Evaluation:
        """Evaluate a policy."""
        return evaluate(
            policy.model,
            policy.tokenizer,
            self.questions,
            dataclasses.replace(self.settings.SAMPLE, temperature=temperature),
            self.key,
            name=name,
            path=str(path),
            verifier=self.task.verifier(),
            extract=common.task_answer,
            equal=common.same_text,
            strategies=self.strategies if strategies else None,
            batch_size=self.batch_size,
            **self.recorder.keep(name),
        )


def strategies(settings: Any) -> StrategyConfig:
    """The settings' strategies, with CaT as --confidence and --prune say; raises UserError for unknown names."""
    given = {"step_confidence": FLAGS.confidence, "prune": FLAGS.prune}
    given = {name: value for name, value in given.items() if value is not None}
    cat = dataclasses.replace(settings.STRATEGIES.cat, **given)
    return dataclasses.replace(settings.STRATEGIES, cat=cat, published=FLAGS.controls)


def check_places(out: Path) -> None:
    """Refuses a folder that holds, at our output paths, files that this program did not write.

    Args:
      out: the folder. A run of the quickstart is known by its first round's traces; their settings are checked with them.

    Raises:
      UserError: as `result_files.check_files` does; or summary.json is not a quickstart's.
    """
    files = [out / name for name in RESULTS]
    result_files.check_files(files, manifest_path(out / "round_1" / "traces.jsonl"))
    summary = out / "summary.json"
    if summary.exists() and not FLAGS.overwrite and not _is_summary(summary):
        raise UserError(
            f"{summary} is there and is no summary of the quickstart: use another output or --overwrite"
        )


def _is_summary(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"policies", "final_minus"} <= found.keys()


def compare(
    task: Task,
    final: Mapping[str, Sequence[Path]],
    out: Path,
    settings: Any,
    strategies: StrategyConfig,
    started: float,
) -> None:
    """Evaluate, print the table, write summary.json and the plots."""
    comparison = Comparison(
        task=task,
        questions=task.questions(FLAGS.split, FLAGS.eval_questions, seed=FLAGS.seed),
        settings=settings,
        strategies=strategies,
        key=jax.random.key(FLAGS.seed + 7919),
        batch_size=FLAGS.batch_size,
        recorder=Recorder(out / "samples", strategies.cat.vote, strategies.cat.gamma),
    )
    rounds = final[FLAGS.preset]
    # Base and final policy; the rounds between them, and CaT as published, come with the controls.
    plan: list[tuple[str, Path, bool]] = [("base", task.policy_path, True)]
    plan += [
        (f"round_{k}", path, k == len(rounds))
        for k, path in enumerate(rounds, start=1)
        if FLAGS.controls or k == len(rounds)
    ]
    plan += [(name, paths[-1], False) for name, paths in final.items() if name != FLAGS.preset]
    found: list[Evaluation] = []
    with common.Progress(len(plan) + ("rft" in final), "compare", unit="evaluation") as progress:
        for name, path, with_strategies in plan:
            found.append(comparison.run(name, path, common.load_policy(path), strategies=with_strategies))
            progress.update()
        if "rft" in final:
            found.append(_temperature_control(comparison, found[0], found[len(rounds)]))
            progress.update()
    _write(found, f"round_{len(rounds)}", settings.SAMPLE.num_samples, out, started)


def _temperature_control(comparison: Comparison, base: Evaluation, last: Evaluation) -> Evaluation:
    """The base at the temperature that gives it the final policy's mean entropy a token."""
    policy = common.load_policy(base.path)
    target = float(last.tables.trace_entropy.sum() / last.tables.tokens.sum())
    # Found on questions of another split: the control may not see those it is reported on.
    temperature = matched_temperature(
        policy.model,
        policy.tokenizer,
        comparison.task.questions("tune", min(128, len(comparison.questions)), seed=FLAGS.seed),
        dataclasses.replace(comparison.settings.SAMPLE, num_samples=4),
        target,
        jax.random.key(FLAGS.seed + 104729),
        batch_size=comparison.batch_size,
    )
    return comparison.run(
        "base_matched_temperature", Path(base.path), policy, strategies=False, temperature=temperature
    )


def _write(found: Sequence[Evaluation], final: str, samples: int, out: Path, started: float) -> None:
    base, last = found[0], next(e for e in found if e.name == final)
    others = [e for e in found if e is not base and e is not last]
    records: list[dict[str, Any]] = []
    final_minus: dict[str, Any] = {}
    with common.Progress(len(found) + len(others), "intervals", unit="table") as progress:
        for e in found:
            records.append(policy_record(e, None if e is base else base))
            progress.update()
        for e in others:
            ours, theirs = (dataclasses.replace(side, strategies={}) for side in (last, e))
            final_minus[e.name] = paired_record(ours, theirs)
            progress.update()
    summary = {
        "seed": FLAGS.seed,
        "seconds": None,
        "questions": FLAGS.eval_questions,
        "samples_per_question": samples,
        "preset": FLAGS.preset,
        "split": FLAGS.split,
        "final": final,
        "policies": records,
        "final_minus": final_minus,
    }
    shown: dict[str, Tables] = {"base": base.tables, final: last.tables}
    plots.plot_reliability(shown, out / "reliability.png")
    plots.plot_entropy(shown, out / "entropy.png")
    plots.plot_strategies({"base": base.strategies, final: last.strategies}, out / "strategies.png")
    summary["seconds"] = round(time.monotonic() - started, 1)
    write_json(out / "summary.json", summary)
    common.say(table(records))
    common.say(strategy_table(records))
    common.closing(
        f"summary in {out / 'summary.json'}",
        {"seconds": summary["seconds"], "plots": "reliability, entropy, strategies"},
    )


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Metrics of sampled traces, a row a policy; differences to the base with 95 % intervals below."""
    width = max(len(r["name"]) for r in records)
    lines = ["", f"{'policy':<{width}}  " + "  ".join(f"{title:>15}" for title in TABLE.values())]
    for record in records:
        cells = (record[name] for name in TABLE)
        lines.append(
            f"{record['name']:<{width}}  "
            + "  ".join(f"{'-' if v is None else f'{v:.3f}':>15}" for v in cells)
        )
    lines += ["", "difference to base [95 % interval by question]"]
    for record in records[1:]:
        for name in COMPARED:
            pair = record["paired_with_base"][name]
            if pair["difference"] is not None:
                interval = "" if pair["low"] is None else f" [{pair['low']:+.3f}, {pair['high']:+.3f}]"
                lines.append(
                    f"{record['name']:<{width}}  {TABLE[name]:<13}{pair['difference']:+.3f}{interval}"
                )
    return "\n".join(lines)


def strategy_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy and tokens of every strategy, for the policies that have them."""
    with_strategies = [r for r in records if r["strategies"]]
    lines = ["", f"{'strategy':<18}" + "".join(f"{r['name'] + ' acc (tokens)':>26}" for r in with_strategies)]
    for name in STRATEGY_ORDER:
        if not any(name in record["strategies"] for record in with_strategies):
            continue
        cells = []
        for record in with_strategies:
            entry = record["strategies"].get(name)
            text = "-" if entry is None else f"{entry['accuracy']:.3f} ({entry['tokens_per_question']:.0f})"
            cells.append(f"{text:>26}")
        lines.append(f"{name:<18}" + "".join(cells))
    return "\n".join([*lines, ""])
