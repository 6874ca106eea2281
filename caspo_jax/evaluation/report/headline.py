"""What a run found, in a sentence or two: the first thing that its report says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.evaluation.formats import spoken
from caspo_jax.evaluation.report.cells import interval_text
from caspo_jax.evaluation.report.evaluate_tables import Rows, rows_of
from caspo_jax.evaluation.report.faithfulness_tables import is_faithfulness
from caspo_jax.evaluation.report.folder import Run


def headlines(run: Run) -> list[str]:
    """Sentences about the run's summaries, none where nothing is known of them."""
    found = []
    policies = [p for p in run.summary.get("policies") or () if isinstance(p, Mapping)]
    found += _policies(policies, run.summary)
    found += _strategies(
        _whole(run.summaries.get("table"), "benchmark", "strategy", "size", "questions", "tokens"),
        _whole(run.summaries.get("paired"), "benchmark", "strategy", "size", "baseline", "verdict"),
    )
    for kind in ("steps", "paths"):
        found += _confidences(kind, _whole(run.summaries.get(f"confidences.{kind}"), "confidence"))
    for summary in run.summaries.values():
        if is_faithfulness(summary):
            found += _compared(summary) if "calibration" not in summary else _faithfulness(summary)
    return found


def _whole(summary: Any, *fields: str) -> Rows:
    """The rows of a table, none unless all have these fields: other tables may bear its name."""
    rows = rows_of(summary)
    return rows if all(set(fields) <= set(row) for row in rows) else []


def _minus(text: str) -> str:
    """The text with the sign of negative numbers as it is printed."""
    return re.sub(r"-(?=[.\d])", "−", text)


def _after(interval: str) -> str:
    """An interval as it stands after its number; a single question has none."""
    return f" {interval}" if interval else ""


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def _policies(policies: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[str]:
    """The last policy of the rounds against the base: steps, answers, and what did not improve."""
    final = next((p for p in policies if p.get("name") == summary.get("final")), None)
    if final is None or final is policies[0] or not isinstance(final.get("paired_with_base"), Mapping):
        return []
    base, paired = policies[0], final["paired_with_base"]

    def known(field: str) -> bool:
        pair = paired.get(field) or {}
        return all(v is not None for v in (base.get(field), final.get(field), pair.get("difference")))

    def change(field: str) -> str:
        pair = paired[field]
        points, interval = 100 * pair["difference"], ""
        if pair.get("low") is not None and pair.get("high") is not None:
            interval = f" [{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}]"
        return _minus(f"{points:+.1f}{interval} points")

    lines = []
    if known("step_accuracy"):
        rounds = str(summary["final"]).removeprefix("round_")
        after = (
            f"After {rounds} round{'s' if rounds != '1' else ''} of training"
            if rounds.isdigit()
            else "After training"
        )
        lines.append(
            f"{after}, {percent(final['step_accuracy'])} of the reasoning steps are right; "
            f"before, {percent(base['step_accuracy'])} were ({change('step_accuracy')})."
        )
    if known("answer_accuracy"):
        lines.append(
            f"{percent(final['answer_accuracy'])} of the sampled answers are right; "
            f"before, {percent(base['answer_accuracy'])} were ({change('answer_accuracy')})."
        )
    if known("entropy_auroc"):
        word = {
            "above": "better than",
            "below": "less well than",
            "equal": "neither better nor less well, as far as can be told, than",
        }[_verdict(paired["entropy_auroc"])]
        lines.append(
            f"Entropy ranks right steps above wrong ones {word} before: AUROC {final['entropy_auroc']:.3f}, "
            f"before {base['entropy_auroc']:.3f}."
        )
    return lines


def _verdict(pair: Mapping[str, Any]) -> str:
    low, high = pair.get("low"), pair.get("high")
    return "equal" if low is None or high is None or low <= 0 <= high else "above" if low > 0 else "below"


def _strategies(rows: Rows, paired: Rows) -> list[str]:
    """Of each benchmark: the best strategy, CaT, and CaT against the votes at its cost."""
    lines = []
    for name in dict.fromkeys(r["benchmark"] for r in rows):
        mine = [r for r in rows if r["benchmark"] == name and r.get("accuracy") is not None]
        if not mine:
            continue
        best = max(mine, key=_accuracy_then_cost)
        line = (
            f"On {name} ({best['questions']:,} questions) {_named(best)} is right most often: {_scored(best)}"
        )
        cat = max((r for r in mine if r["strategy"] == "cat"), key=_accuracy_then_cost, default=None)
        if cat is not None and cat is not best:
            line += f"; {_named(cat)}: {_scored(cat)}"
        lines.append(line + ".")
        if cat is None:
            continue
        pairs = [
            p
            for p in paired
            if p["benchmark"] == name and p["strategy"] == "cat" and p["size"] == cat["size"]
        ]
        if not pairs:
            continue
        said = []
        for verdict, word in (
            ("above", "better than"),
            ("equal", "not to be told apart from"),
            ("below", "worse than"),
        ):
            others = [spoken(p["baseline"]) for p in pairs if p["verdict"] == verdict]
            if others:
                said.append(f"{word} {_listed(others)}")
        lines.append(
            f"Paired by question, at or near its own cost, CaT ({cat['size']}) is {'; '.join(said)}."
        )
    return lines


def _accuracy_then_cost(row: Mapping[str, Any]) -> tuple[float, float]:
    """The better strategy has the larger: of equally right ones the cheaper is."""
    return row["accuracy"], -(row.get("tokens") or 0.0)


def _named(row: Mapping[str, Any]) -> str:
    size = str(row["size"])
    return spoken(row["strategy"]) + (
        "" if size == "1" else f" ({size.replace('= cat', 'at the tokens of CaT')})"
    )


def _scored(row: Mapping[str, Any]) -> str:
    interval = _after(interval_text(row.get("low"), row.get("high")))
    return f"{row['accuracy']:.3f}{interval} at {row['tokens']:,.0f} tokens"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _confidences(kind: str, rows: Rows) -> list[str]:
    known = [r for r in rows if r.get("auroc") is not None and r.get("confidence") != "length"]
    if not known:
        return []
    best = max(known, key=lambda r: r["auroc"])
    interval = _after(interval_text(best.get("auroc_low"), best.get("auroc_high")))
    line = f"Of {len(known)} confidences, {best['confidence']} best tells right {kind} from wrong ones: AUROC {best['auroc']:.3f}{interval}"
    entropy = next((r for r in known if r["confidence"] == "entropy"), None)
    if entropy is not None and entropy is not best:
        line += f"; entropy {entropy['auroc']:.3f}"
    return [line + "."]


def _faithfulness(report: Mapping[str, Any]) -> list[str]:
    """How sure the words are, how sure the model, and whether the words follow."""
    lines = []
    for scorer, blocks in report["faithfulness"].items():
        known = {name: b for name, b in blocks.items() if b.get("steps")}
        if not known:
            continue
        name = next((n for n in ("entropy", "prefix") if n in known), next(iter(known)))
        block = known[name]
        said, sure = block["mean_decisiveness"], block["mean_confidence"]
        rank = (block["metrics"].get("spearman") or {}).get("value")
        skill = (block.get("skill") or {}).get("mfg") or {}
        line = f"The words sound {said:.2f} sure, the model is {sure:.2f} sure ({name}, {block['steps']:,} steps)"
        spread = ((report.get("decisiveness") or {}).get(scorer) or {}).get("std")
        if rank is None:
            line += (
                "; the words never change, so they follow nothing."
                if spread is None or spread < 1e-9  # equal values differ from their mean in its last bits
                else "; whether the words follow cannot be told from these steps."
            )
        else:
            line += _minus(f"; the words follow the model at a rank correlation of {rank:+.2f}.")
        lines.append(line)
        if rank is not None and skill.get("value") is not None:
            interval = _after(interval_text(skill.get("low"), skill.get("high")))
            mfg = block["metrics"]["mfg"]["value"]
            lines.append(
                _minus(
                    f"MFG is {mfg:.3f}; beside the same words handed to other traces that is a skill of "
                    f"{skill['value']:+.3f}{interval} (0: no better than chance)."
                )
            )
        break
    calibration = {
        n: b for n, b in (report.get("calibration") or {}).items() if (b.get("auroc") or {}).get("value")
    }
    if calibration:
        best = max(calibration, key=lambda n: calibration[n]["auroc"]["value"])
        lines.append(
            f"What best tells right steps from wrong ones is {best.replace('_', ' ')}: "
            f"AUROC {calibration[best]['auroc']['value']:.3f}."
        )
    return lines


def _compared(record: Mapping[str, Any]) -> list[str]:
    for scorer, blocks in record["faithfulness"].items():
        name = next((n for n in ("entropy", "prefix") if n in blocks), next(iter(blocks), None))
        if name is None:
            continue
        entry = blocks[name].get("mfg") or {}
        if entry.get("difference") is None:
            continue
        interval = _after(interval_text(entry.get("low"), entry.get("high")))
        line = (
            f"MFG ({scorer} against {name}) is {entry['first']:.3f} in the first and {entry['second']:.3f} in the second: "
            f"{entry['difference']:+.3f}{interval}."
        )
        return [_minus(line)]
    return []
