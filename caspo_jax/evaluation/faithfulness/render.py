"""The report as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.evaluation.untold import untold

Record = Mapping[str, Any]


def render_report(report: Record) -> str:
    """All tables of a report."""
    lines = ["traces: " + ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in report["traces"].items() if n)]
    for scorer, blocks in report["faithfulness"].items():
        known = {name: block for name, block in blocks.items() if block.get("steps")}
        if known:
            lines += ["", f"words scored by {scorer}, against", *_faithful(known)]
            lines += [
                "",
                "  beside trivial words (MFG / cMFG over occupied bins / cMFG*)",
                *_baselines(known),
            ]
    for title, field in (("scorers", "scorer_agreement"), ("estimators, steps", "estimator_agreement")):
        if report[field]:
            lines += ["", f"agreement of {title}", *_agreement(report[field])]
    if report["calibration"]:
        lines += [
            "",
            "factual calibration: confidence against the correctness of the step",
            *_calibration(report),
        ]
    lines += [f"\n{remark}" for remark in untold(report)]
    for name, why in (report.get("left_out") or {}).items():
        lines.append(f"\nno {name}: {why}")
    return "\n".join([*lines, ""])


def render_comparison(record: Record, first: str, second: str) -> str:
    """The table of `compare_record`."""
    lines = [f"{second} minus {first}, {record['questions']} questions, 95 % interval by question", ""]
    head = f"  {'':<34}{'first':>8}{'second':>8}{'difference':>12}  interval"
    lines.append(head)
    if "step_accuracy" in record:
        lines.append(_difference("step accuracy", record["step_accuracy"]))
    lines += [_difference(f"decisiveness {name}", entry) for name, entry in record["decisiveness"].items()]
    lines += [_difference(f"confidence {name}", entry) for name, entry in record["confidence"].items()]
    for scorer, blocks in record["faithfulness"].items():
        for name, block in blocks.items():
            lines += ["", f"  {scorer} against {name}"]
            lines += [_difference(metric, block[metric]) for metric in block]
    return "\n".join([*lines, ""])


def _faithful(blocks: Mapping[str, Record]) -> list[str]:
    columns = ("mfg", "cmfg", "cmfg_occupied", "cmfg_star", "spearman", "kendall", "trace_spearman", "gap")
    lines = [f"  {'':<15}{'steps':>7}" + "".join(f"{name:>24}" for name in columns)]
    for name, block in blocks.items():
        cells = "".join(f"{_interval(block['metrics'][column]):>24}" for column in columns)
        lines.append(f"  {name:<15}{block['steps']:>7}{cells}")
    return lines


def _baselines(blocks: Mapping[str, Record]) -> list[str]:
    shown = ("mfg", "cmfg_occupied", "cmfg_star")
    titles = ("these", "permuted", "always decisive", "mean D", "best constant", "skill")
    lines = [f"  {'':<15}" + "".join(f"{title:>24}" for title in titles) + f"{'bins':>6}"]
    for name, block in blocks.items():
        base = block["baselines"]
        rows: list[Sequence[float | None]] = [
            [block["metrics"][m]["value"] for m in shown],
            [base["permuted"][m]["mean"] for m in shown],
            *([base[kind][m] for m in shown] for kind in ("always_decisive", "constant", "best_constant")),
            [block["skill"][m]["value"] for m in shown],
        ]
        cells = "".join(f"{' / '.join(_number(v) for v in row):>24}" for row in rows)
        lines.append(f"  {name:<15}{cells}{block['coverage']['occupied_bins']:>6}")
    return lines


def _agreement(items: Sequence[Record]) -> list[str]:
    lines = [f"  {'':<32}{'steps':>7}{'spearman':>10}{'kendall':>9}{'|diff|':>8}{'diff':>8}"]
    for item in items:
        numbers = (
            item["spearman"],
            item["kendall"],
            item["mean_absolute_difference"],
            item["mean_difference"],
        )
        a, b, c, d = (_number(v) for v in numbers)
        pair = f"{item['first']} ~ {item['second']}"
        lines.append(f"  {pair:<32}{item['steps']:>7}{a:>10}{b:>9}{c:>8}{d:>8}")
    return lines


def _calibration(report: Record) -> list[str]:
    """How confidence ranks steps, and under it how far its level is from their accuracy."""
    blocks = report["calibration"]
    lines = [f"  {'':<15}{'steps':>7}{'auroc':>22}{'auroc within question':>36}{'auroc within prefix':>36}"]
    for name, block in blocks.items():
        within = [_within(block, *kind) for kind in (("question", "questions"), ("prefix", "prefixes"))]
        cells = f"{_interval(block['auroc']):>22}" + "".join(f"{cell:>36}" for cell in within)
        lines.append(f"  {name:<15}{block['steps']:>7}{cells}")
    columns = ("bias", "ece", "ece_scaled", "brier", "brier_scaled")
    lines += ["", f"  {'':<15}{'steps':>7}" + "".join(f"{name:>22}" for name in columns)]
    for name, block in blocks.items():
        cells = "".join(f"{_interval(block.get(column)):>22}" for column in columns)
        lines.append(f"  {name:<15}{block['steps']:>7}{cells}")
    return lines


def _within(block: Record, one: str, many: str) -> str:
    """The AUROC within questions or prefixes with the number that have both verdicts: of few it says little."""
    groups = block[f"within_{one}_groups"]
    value = _interval(block[f"within_{one}_auroc"]) if groups else "n/a"
    return f"{value} ({groups:,} {one if groups == 1 else many})"


def _difference(name: str, entry: Record) -> str:
    first, second, change = (_number(entry[k]) for k in ("first", "second", "difference"))
    low, high = _number(entry["low"]), _number(entry["high"])
    return f"  {name:<34}{first:>8}{second:>8}{change:>12}  [{low}, {high}]"


def _interval(entry: Record | None) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    return f"{_number(entry['value'])} [{_number(entry['low'])}, {_number(entry['high'])}]"


def _number(value: float | None) -> str:
    """`.83`, `-.02`, `1.00`."""
    if value is None:
        return "-"
    text = f"{value + 0.0:.3f}".replace("-0.000", "0.000")
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
