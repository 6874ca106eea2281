"""The files that `experiments.faithfulness` writes, as tables: words against estimators, trivial words, calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.evaluation.report.cells import (
    INTERVALS,
    Cell,
    Table,
    difference_cell,
    interval_text,
    number_cell,
    within_cell,
)
from caspo_jax.evaluation.untold import untold

_METRICS = (
    ("mfg", "MFG", "mean faithfulness: mean over traces of F = 1 − |decisiveness − confidence|"),
    (
        "cmfg_occupied",
        "cMFG",
        "mean F in ten equally wide bins of confidence, mean over the bins that hold steps",
    ),
    (
        "cmfg_star",
        "cMFG*",
        "mean F in ten bins of equally many steps, weighted by how much of the confidence scale each covers",
    ),
    ("spearman", "Spearman", "rank correlation of words and confidence, over steps"),
    ("trace_spearman", "Spearman, traces", "the same, over traces"),
    ("gap", "words − model", "mean difference; above 0 the text sounds surer than the model is"),
)
_TRIVIAL = (
    ("permuted", "permuted", "the same words, handed to other traces"),
    ("always_decisive", "always sure", "words that are always decisive"),
    ("constant", "mean words", "words that always sound as these do on average"),
    ("best_constant", "best constant", "the one constant that scores best on MFG"),
)
_CALIBRATION = (
    ("auroc", "AUROC", "does it rank right steps above wrong ones? all steps pooled"),
    (
        "within_question_auroc",
        "within question",
        "AUROC among the steps of one question, mean over questions",
    ),
    (
        "within_prefix_auroc",
        "within prefix",
        "AUROC among steps that go on from one prefix, mean over prefixes",
    ),
    ("bias", "bias", "mean confidence minus the share of right steps"),
    ("ece", "ECE", "expected calibration error: mean distance of confidence from accuracy in ten bins"),
    ("ece_scaled", "ECE scaled", "after a cross-fitted one-parameter scaling"),
    ("brier", "Brier", "Brier score: mean squared distance of confidence from the verdict, 0 or 1"),
    ("brier_scaled", "Brier scaled", "after a cross-fitted one-parameter scaling"),
)
# AUROC over groups: where the number of groups stands, and what they are.
_GROUPED = {
    "within_question_auroc": ("within_question_groups", "questions"),
    "within_prefix_auroc": ("within_prefix_groups", "prefixes"),
}


def is_faithfulness(summary: Any) -> bool:
    """Is this the report of `experiments.faithfulness`, or its comparison?"""
    return isinstance(summary, Mapping) and isinstance(summary.get("faithfulness"), Mapping)


def faithfulness_tables(summaries: Mapping[str, Any], prefix: str = "") -> dict[str, list[Table]]:
    """Name of a summary -> its tables."""
    found = {}
    for name, summary in summaries.items():
        if is_faithfulness(summary):
            make = _compared if "left_out" in summary and "calibration" not in summary else _report
            found[name] = make(summary, prefix)
    return found


def _report(report: Mapping[str, Any], prefix: str) -> list[Table]:
    tables: list[Table] = []
    remarks = "".join(f" {remark}." for remark in untold(report))
    for scorer, blocks in report["faithfulness"].items():
        known = {name: block for name, block in blocks.items() if block.get("steps")}
        if known:
            words = _faithful(known, f"{prefix}Words ({scorer}) against the estimators")
            if not tables:
                words = dataclasses.replace(words, note=words.note + remarks)
            tables += [words, _trivial(known, prefix)]
    calibration = report.get("calibration")
    if calibration:
        tables.append(_calibration(calibration, prefix))
    pairs = [*(report.get("scorer_agreement") or ()), *(report.get("estimator_agreement") or ())]
    if pairs:
        tables.append(_agreement(pairs, prefix))
    return tables


def _faithful(blocks: Mapping[str, Any], title: str) -> Table:
    body = [
        [
            Cell(name.replace("_", " ")),
            number_cell(block.get("mean_decisiveness")),
            number_cell(block.get("mean_confidence")),
            *(_interval(block["metrics"].get(field)) for field, *_ in _METRICS),
            number_cell(block.get("steps"), whole=True),
        ]
        for name, block in blocks.items()
    ]
    columns = [
        ("estimator", "of the model's internal confidence", False),
        ("words", "mean decisiveness", True),
        ("model", "mean confidence by this estimator", True),
        *((head, text, True) for _, head, text in _METRICS),
        ("steps", "that have both words and confidence", True),
    ]
    return Table(
        title,
        columns,
        body,
        f"{INTERVALS} MFG, cMFG and cMFG* depend on the level of both: read them beside those of trivial words, below.",
    )


def _trivial(blocks: Mapping[str, Any], prefix: str) -> Table:
    body = []
    for name, block in blocks.items():
        base = block.get("baselines") or {}
        for field, head in (("mfg", "MFG"), ("cmfg_star", "cMFG*")):
            cells = [
                Cell(name.replace("_", " ")),
                Cell(head),
                number_cell(block["metrics"][field].get("value")),
            ]
            for kind, *_ in _TRIVIAL:
                entry = (base.get(kind) or {}).get(field)
                if isinstance(entry, Mapping):
                    cells.append(
                        number_cell(entry.get("mean"), interval_text(entry.get("low"), entry.get("high")))
                    )
                else:
                    cells.append(number_cell(entry))
            skill = (block.get("skill") or {}).get(field) or {}
            cells.append(number_cell(skill.get("value"), interval_text(skill.get("low"), skill.get("high"))))
            body.append(cells)
    columns = [
        ("estimator", "of the model's internal confidence", False),
        ("metric", "", False),
        ("these words", "the words of the traces", True),
        *((head, text, True) for _, head, text in _TRIVIAL),
        (
            "skill",
            "(these − permuted) / (1 − permuted): 0 is no better than the words of other traces, 1 is perfect",
            True,
        ),
    ]
    return Table(
        f"{prefix}What trivial words would score",
        columns,
        body,
        "Permuted: mean over all permutations, and the range that holds 95 % of random ones. Words that never change have no skill.",
    )


def _calibration(blocks: Mapping[str, Any], prefix: str) -> Table:
    shown = [c for c in _CALIBRATION if any(c[0] in block for block in blocks.values())]
    body = [
        [
            Cell(name.replace("_", " ").replace("words:", "words: ")),
            *(_calibrated(block, field) for field, *_ in shown),
            number_cell(block.get("steps"), whole=True),
        ]
        for name, block in blocks.items()
    ]
    columns = [
        ("confidence", "an estimator, a likelihood, or what the words say", False),
        *((head, text, True) for _, head, text in shown),
        ("steps", "with a verdict", True),
    ]
    return Table(f"{prefix}Confidence against correctness of steps", columns, body, INTERVALS)


def _agreement(items: Sequence[Mapping[str, Any]], prefix: str) -> Table:
    body = [
        [
            Cell(f"{i['first']} ~ {i['second']}".replace("_", " ")),
            number_cell(i.get("spearman")),
            number_cell(i.get("kendall")),
            number_cell(i.get("mean_absolute_difference")),
            number_cell(i.get("mean_difference")),
            number_cell(i.get("steps"), whole=True),
        ]
        for i in items
    ]
    columns = [
        ("pair", "first ~ second", False),
        ("Spearman", "rank correlation over steps", True),
        ("Kendall", "rank correlation over steps", True),
        ("|difference|", "mean absolute difference", True),
        ("difference", "mean of first minus second", True),
        ("steps", "that have both", True),
    ]
    return Table(f"{prefix}Agreement of scorers and of estimators", columns, body, aside=True)


def _compared(record: Mapping[str, Any], prefix: str) -> list[Table]:
    rows: list[tuple[str, Mapping[str, Any]]] = []
    if "step_accuracy" in record:
        rows.append(("step accuracy", record["step_accuracy"]))
    for kind in ("decisiveness", "confidence"):
        rows += [(f"{kind}, {name}", entry) for name, entry in (record.get(kind) or {}).items()]
    for scorer, blocks in record["faithfulness"].items():
        for name, block in blocks.items():
            rows += [
                (f"{head}, {scorer} against {name}", block[field])
                for field, head, _ in _METRICS
                if field in block
            ]
    body = [
        [
            Cell(name.replace("_", " ")),
            number_cell(entry.get("first")),
            number_cell(entry.get("second")),
            difference_cell(entry),
        ]
        for name, entry in rows
    ]
    columns = [
        ("figure", "", False),
        ("first", str(record.get("first", "")), True),
        ("second", str(record.get("second", "")), True),
        ("difference", "second minus first, paired by question", True),
    ]
    note = f"{record.get('questions', 0):,} questions, paired. {INTERVALS}"
    return [Table(f"{prefix}Second policy minus first", columns, body, note)]


def _calibrated(block: Mapping[str, Any], field: str) -> Cell:
    if field not in _GROUPED:
        return _interval(block.get(field))
    counted, unit = _GROUPED[field]
    entry = block.get(field) or {}
    interval = interval_text(entry.get("low"), entry.get("high"))
    return within_cell(entry.get("value"), block.get(counted), unit, interval)


def _interval(entry: Any) -> Cell:
    entry = entry or {}
    return number_cell(entry.get("value"), interval_text(entry.get("low"), entry.get("high")))
