"""The files that `experiments.faithfulness` writes, as tables: words against estimators, trivial words, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.evaluation.report.cells import Cell, Table, interval_text, number_cell

_METRICS = (
    ("mfg", "MFG", "mean over traces of F = 1 − |decisiveness − confidence|"),
    ("cmfg_occupied", "cMFG", "mean F of ten bins of confidence, over the bins that hold steps"),
    ("cmfg_star", "cMFG*", "mean F of ten bins of equal mass, weighted by their width"),
    ("spearman", "Spearman", "rank correlation of words and confidence, over steps"),
    ("trace_spearman", "of traces", "the same, over traces"),
    ("gap", "gap", "decisiveness minus confidence; above 0 the text sounds surer than the model is"),
)
_TRIVIAL = (
    ("permuted", "permuted", "the same words, handed to other traces"),
    ("always_decisive", "always sure", "words that are always decisive"),
    ("constant", "mean words", "words that always sound as these do on average"),
    ("best_constant", "best constant", "the one constant that scores best"),
)
_CALIBRATION = (
    ("auroc", "AUROC", "does it rank right steps above wrong ones? pooled"),
    ("within_question_auroc", "in question", "the same, within a question"),
    ("bias", "bias", "mean minus the share of right steps"),
    ("ece", "ECE", "expected calibration error"),
    ("ece_scaled", "ECE scaled", "after a cross-fitted one-parameter scaling"),
    ("brier", "Brier", "Brier score"),
    ("brier_scaled", "Brier scaled", "after a cross-fitted one-parameter scaling"),
)
_INTERVALS = "Small print: 95 % bootstrap interval by question."


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
    tables = []
    for scorer, blocks in report["faithfulness"].items():
        known = {name: block for name, block in blocks.items() if block.get("steps")}
        if known:
            tables += [
                _faithful(known, f"{prefix}Words ({scorer}) against the estimators"),
                _trivial(known, prefix),
            ]
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
        ("steps", "with both", True),
    ]
    return Table(
        title, columns, body, f"{_INTERVALS} Levels say little without the trivial words below; ranks do."
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
        ("estimator", "", False),
        ("metric", "", False),
        ("these words", "", True),
        *((head, text, True) for _, head, text in _TRIVIAL),
        ("skill", "(M − permuted) / (1 − permuted): what the words add to chance", True),
    ]
    return Table(
        f"{prefix}What trivial words would score",
        columns,
        body,
        "Permuted: mean and 95 % range of the draws.",
    )


def _calibration(blocks: Mapping[str, Any], prefix: str) -> Table:
    shown = [c for c in _CALIBRATION if any(c[0] in block for block in blocks.values())]
    body = [
        [
            Cell(name.replace("_", " ").replace("words:", "words: ")),
            *(_interval(block.get(field)) for field, *_ in shown),
            number_cell(block.get("steps"), whole=True),
        ]
        for name, block in blocks.items()
    ]
    columns = [("", "", False), *((head, text, True) for _, head, text in shown), ("steps", "", True)]
    return Table(f"{prefix}Confidence against correctness of steps", columns, body, _INTERVALS)


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
        ("pair", "", False),
        ("Spearman", "rank correlation over steps", True),
        ("Kendall", "rank correlation over steps", True),
        ("|difference|", "mean absolute difference", True),
        ("difference", "mean difference", True),
        ("steps", "", True),
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
    body = []
    for name, entry in rows:
        value = entry.get("difference")
        change = (
            Cell("–")
            if value is None
            else Cell(
                f"{value:+.3f}".replace("-", "−"), value, interval_text(entry.get("low"), entry.get("high"))
            )
        )
        body.append(
            [
                Cell(name.replace("_", " ")),
                number_cell(entry.get("first")),
                number_cell(entry.get("second")),
                change,
            ]
        )
    columns = [
        ("", "", False),
        ("first", str(record.get("first", "")), True),
        ("second", str(record.get("second", "")), True),
        ("difference", "second minus first, paired by question", True),
    ]
    note = f"{record.get('questions', 0):,} questions, paired. {_INTERVALS}"
    return [Table(f"{prefix}Second policy minus first", columns, body, note)]


def _interval(entry: Any) -> Cell:
    entry = entry or {}
    return number_cell(entry.get("value"), interval_text(entry.get("low"), entry.get("high")))
