"""Orders that are known: what is said of intervals that touch, of a wrong order, of numbers that are missing."""

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import ordering_record, render_ordering


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
        cmfg=(0.6, 0.5, 0.7),
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
