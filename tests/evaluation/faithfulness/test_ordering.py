"""Orders that are known: what is said of intervals that touch, of a wrong order, of numbers that are missing."""

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import Table, ordering_record, render_ordering, report_record


def report(**metrics):
    block = {n: dict(zip(("value", "low", "high"), triple)) for n, triple in metrics.items()}
    skill = {"mfg": {"value": 0.0, "low": None, "high": None}}
    return {
        "faithfulness": {
            "lexicon": {"entropy": {"steps": 9, "metrics": block, "skill": skill}, "probe": {"steps": 0}}
        }
    }


def test_verdicts():
    best = report(
        mfg=(0.9, 0.88, 0.92),
        cmfg=(0.7, 0.6, 0.8),
        spearman=(None, None, None),
        gap=(0.1, 0.0, 0.2),
        kendall=(0.3, 0.2, 0.4),
    )
    middle = report(
        mfg=(0.8, 0.78, 0.82),
        cmfg=(0.55, 0.5, 0.6),  # its end is the low end of the best one
        spearman=(0.1, 0.0, 0.2),
        gap=(0.1, 0.0, 0.2),
        kendall=(0.5, 0.4, 0.6),
    )
    worst = report(
        mfg=(0.6, 0.5, 0.7),
        cmfg=(0.1, 0.0, 0.2),
        spearman=(0.0, 0.0, 0.1),
        gap=(0.1, 0.0, 0.2),
        kendall=(0.1, 0.0, 0.15),
    )
    found = ordering_record([best, middle, worst])
    verdicts = {metric: entry["verdict"] for metric, entry in found["lexicon"]["entropy"].items()}
    assert verdicts == {
        "mfg": "apart",
        "cmfg": "ordered",
        "spearman": "undefined",
        "kendall": "not",
        "skill_mfg": "undefined",
    }
    assert set(found["lexicon"]) == {"entropy"}  # an estimator without a step says nothing
    assert found["lexicon"]["entropy"]["mfg"]["values"][1] == [0.8, 0.78, 0.82]
    assert {e["verdict"] for e in ordering_record([worst, best])["lexicon"]["entropy"].values()} == {
        "not",
        "undefined",
    }


@pytest.mark.parametrize(
    "values, verdict",
    [
        ((0.0, -1.46e-15), "undefined"),  # words that never change, before they had no skill at all
        ((-1.46e-15, 0.0), "undefined"),
        ((0.3, 0.3), "undefined"),
        ((0.3, 0.3, 0.1), "undefined"),
        ((0.3, 0.3, 0.4), "not"),
        ((0.3, 0.3 - 1e-9), "ordered"),
    ],
)
def test_rounding_decides_nothing(values, verdict):
    found = ordering_record([report(mfg=(v, v - 0.1, v + 0.1)) for v in values])
    assert found["lexicon"]["entropy"]["mfg"]["verdict"] == verdict


def test_words_that_never_change_put_no_policies_in_order():
    rng = np.random.default_rng(0)
    reports = []
    for word in (0.9, 0.7):
        n = np.arange(40)
        t = Table(
            trace_ids=tuple(map(str, n[:20])),
            trace_group=n[:20].astype(object),
            trace=n // 2,
            group=(n // 2).astype(object),
            prefix=n.astype(object),
            index=n % 2,
            position=(n % 2).astype(float),
            right=np.full(40, np.nan),
            texts=("",) * 40,
            decisiveness={"lexicon": np.full(40, word) + 1e-16 * rng.integers(0, 2, 40)},
            confidence={"entropy": rng.random(40)},
            trace_confidence={"entropy": rng.random(20)},
        )
        reports.append(report_record(t, {"traces": 20}, draws=20))
    found = ordering_record(reports)["lexicon"]["entropy"]
    skills = {metric: entry["verdict"] for metric, entry in found.items() if metric.startswith("skill_")}
    assert len(skills) == 7
    assert set(skills.values()) == {"undefined"}


def test_text_and_bad_input():
    full = report(mfg=(0.9, 0.88, 0.92), cmfg_star=(0.7, 0.6, 0.8), spearman=(None, None, None))
    text = render_ordering(ordering_record([full, full]), ["a", "b"])
    assert "a > b?" in text
    assert "0.90 [0.88, 0.92]" in text
    assert "nan" not in text
    with pytest.raises(UserError, match="two reports at least"):
        ordering_record([full])
    with pytest.raises(UserError, match="no scorer in common"):
        ordering_record([full, {"faithfulness": {"judge": {}}}])
