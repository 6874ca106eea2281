"""The table and the report: constructed traces whose true faithfulness is known, references, missing values."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from caspo_jax import metrics
from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import (
    LexiconScorer,
    Stage,
    Subject,
    Table,
    build_table,
    compare_record,
    faithfulness_record,
    pair_up,
    probe_stage,
    render_comparison,
    render_report,
    report_record,
    step_records,
)
from caspo_jax.evaluation.faithfulness.estimators import published_token, token_values
from caspo_jax.evaluation.faithfulness.faithful import METRICS, RANKS, of_steps, statistics
from caspo_jax.tasks.hedging import HEDGES, HOWS, levels
from caspo_jax.types import Step, Trace


def table(decisiveness, confidence, steps=4, questions=None, right=None, groups=None):
    """Traces of `steps` steps each, one a question, or `questions` of them in turn."""
    n = len(next(iter(decisiveness.values())))
    traces = n // steps
    names = np.array([f"q{i % (questions or traces)}" for i in range(traces)], dtype=object)
    names = names if groups is None else np.array(groups, dtype=object)
    trace = np.repeat(np.arange(traces), steps)

    def means(values):
        return np.array([np.nanmean(values[trace == k]) for k in range(traces)])

    return Table(
        trace_ids=tuple(f"t{i}" for i in range(traces)),
        trace_group=names,
        trace_right=np.full(traces, np.nan),
        trace=trace,
        group=names[trace],
        index=np.tile(np.arange(steps), traces),
        position=np.tile(np.arange(steps) / max(steps - 1, 1), traces),
        right=np.full(n, np.nan) if right is None else np.asarray(right, float),
        texts=tuple(f"step {i}" for i in range(n)),
        decisiveness={k: np.asarray(v, float) for k, v in decisiveness.items()},
        confidence={k: np.asarray(v, float) for k, v in confidence.items()},
        trace_confidence={k: means(np.asarray(v, float)) for k, v in confidence.items()},
    )


def constructed(how, seed=0, traces=80, noise=0.08):
    """Hedges chosen from a true confidence; estimators that see it with noise of different kinds."""
    rng = np.random.default_rng(seed)
    true = rng.beta(4, 1.5, traces * 5)
    words = LexiconScorer().score([f"so c = 41{HEDGES[level][1]}" for level in levels(true, how, seed)])
    seen = {
        "entropy": np.clip(true + noise * rng.normal(size=true.size), 0, 1),
        "hidden": 0.6 + 0.4 * np.clip(true + noise * rng.normal(size=true.size), 0, 1),
        "prefix": rng.binomial(10, true) / 10,
    }
    return table({"lexicon": words}, seen, steps=5)


@pytest.fixture(scope="module")
def known():
    return {
        how: {
            name: faithfulness_record(constructed(how), "lexicon", name, draws=200)
            for name in ("entropy", "hidden", "prefix")
        }
        for how in HOWS
    }


@pytest.mark.parametrize("metric", [*METRICS, *RANKS])
@pytest.mark.parametrize("estimator", ["entropy", "prefix"])
def test_right_words_beat_random_ones_and_these_inverted_ones(known, estimator, metric):
    right, random, inverted = (known[how][estimator]["metrics"][metric] for how in HOWS)
    assert right["value"] > random["value"] > inverted["value"]
    if not metric.startswith("trace_"):
        assert right["low"] > random["high"]
        assert random["low"] > inverted["high"]


def test_an_estimator_above_the_range_of_the_words_fools_metrics_of_level_but_not_of_rank(known):
    """`hidden` sees the truth as well as `entropy`, squeezed into [.6, 1]: its rare low values meet the lowest words."""
    right, random, inverted = (known[how]["hidden"]["metrics"] for how in HOWS)
    for metric in ("mfg", *RANKS):
        assert right[metric]["value"] > random[metric]["value"] > inverted[metric]["value"], metric
    for metric in ("cmfg", "cmfg_occupied", "cmfg_star"):
        assert right[metric]["value"] < random[metric]["value"], metric


def test_skill_is_high_zero_and_below(known):
    for estimator in ("entropy", "prefix"):
        right, random, inverted = (known[how][estimator]["skill"] for how in HOWS)
        for metric in ("mfg", "cmfg_occupied", "cmfg_star"):
            assert right[metric]["value"] > 0.3
            assert abs(random[metric]["value"]) < 0.2
            assert inverted[metric]["value"] < -0.1
        assert known["right"][estimator]["baselines"]["permuted"]["mfg"]["p"] < 0.01
        assert known["random"][estimator]["baselines"]["permuted"]["mfg"]["p"] > 0.01


def test_trivial_words_score_high_without_skill():
    """ANCHORS: a constant D scores up to .96 on confidences in [.7, .85]."""
    rng = np.random.default_rng(0)
    c = rng.uniform(0.7, 0.85, 200)
    found = faithfulness_record(table({"s": np.full(200, 0.78)}, {"entropy": c}), "s", "entropy", draws=50)
    assert found["metrics"]["cmfg_star"]["value"] > 0.95
    assert found["metrics"]["mfg"]["value"] > 0.95
    assert found["skill"]["mfg"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert found["metrics"]["spearman"]["value"] is None
    assert found["metrics"]["cmfg"]["value"] < 0.7  # eight empty bins count .5
    assert found["coverage"]["occupied_bins"] == 2
    best = found["baselines"]["best_constant"]
    assert best["value"] == pytest.approx(np.median(c))
    assert best["mfg"] >= found["baselines"]["always_decisive"]["mfg"]


def test_against_plain_references():
    rng = np.random.default_rng(1)
    d, c = rng.random(60), np.round(rng.random(60), 1)
    t = table({"s": d}, {"prefix": c}, steps=3, questions=7)
    p = pair_up(t, "s", "prefix")
    found = {name: f(np.ones(len(g))) for name, (f, g) in statistics(p).items()}
    f = 1 - np.abs(d - c)
    per_trace = f.reshape(20, 3).mean(1)
    assert found["mfg"] == pytest.approx(per_trace.mean())
    assert found["cmfg"] == pytest.approx(metrics.cmfg(f, c))
    assert found["cmfg_occupied"] == pytest.approx(metrics.cmfg(f, c, empty=None))
    assert found["cmfg_star"] == pytest.approx(metrics.cmfg_star(metrics.average_ties(f, c), c))
    assert found["trace_cmfg"] == pytest.approx(metrics.cmfg(per_trace, c.reshape(20, 3).mean(1)))
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(d, c).statistic)
    assert found["kendall"] == pytest.approx(scipy.stats.kendalltau(d, c).statistic)
    assert found["gap"] == pytest.approx((d - c).mean())
    for name, function in of_steps(p).items():
        assert function(f) == pytest.approx(found[name]), name


def test_missing_values_are_left_out_and_null():
    rng = np.random.default_rng(2)
    d, c = rng.random(40), rng.random(40)
    holes, gaps = d.copy(), c.copy()
    holes[::5], gaps[1::4] = np.nan, np.nan
    t = table({"s": holes}, {"entropy": gaps})
    found = faithfulness_record(t, "s", "entropy", draws=20)
    kept = ~(np.isnan(holes) | np.isnan(gaps))
    assert found["steps"] == kept.sum()
    assert found["missing"] == 40 - kept.sum()
    f = 1 - np.abs(d - c)[kept]
    assert found["metrics"]["cmfg"]["value"] == pytest.approx(metrics.cmfg(f, c[kept]))
    records = step_records(t)
    assert records[0]["decisiveness"]["s"] is None
    assert records[0]["faithfulness"]["s"]["entropy"] is None
    assert records[2]["faithfulness"]["s"]["entropy"] == pytest.approx(1 - abs(d[2] - c[2]))
    json.dumps(records, allow_nan=False)
    nothing = faithfulness_record(table({"s": np.full(8, np.nan)}, {"entropy": c[:8]}), "s", "entropy")
    assert nothing == {"steps": 0}


def test_the_whole_report_is_json_and_reads():
    t = constructed("right")
    rng = np.random.default_rng(3)
    right = (rng.random(t.trace.size) < t.confidence["entropy"]).astype(float)
    right[:7] = np.nan
    t = table(
        {**t.decisiveness, "judge": rng.random(t.trace.size)},
        {**t.confidence, "mean_logprob": t.confidence["entropy"] ** 2},
        steps=5,
        right=right,
    )
    report = report_record(t, {"traces": 80}, draws=20, left_out={"probe": "no verdicts"})
    json.dumps(report, allow_nan=False)
    assert set(report["faithfulness"]) == {"lexicon", "judge"}
    assert len(report["estimator_agreement"]) == 3
    assert report["scorer_agreement"][0]["steps"] == t.trace.size
    calibration = report["calibration"]
    assert {"entropy", "mean_logprob", "words:lexicon", "words:judge"} <= set(calibration)
    known = ~np.isnan(right)
    assert calibration["entropy"]["auroc"]["value"] == pytest.approx(
        metrics.auroc(t.confidence["entropy"][known], right[known])
    )
    assert calibration["entropy"]["auroc"]["value"] > calibration["words:judge"]["auroc"]["value"]
    text = render_report(report)
    for word in ("lexicon", "entropy", "skill", "factual calibration", "no probe: no verdicts"):
        assert word in text
    assert "nan" not in text
    unverified = report_record(constructed("right"), {"traces": 80}, draws=5)
    assert unverified["calibration"] == {}


def test_two_policies_are_paired_by_question():
    first, second = constructed("random"), constructed("right")
    record = compare_record(first, second, draws=100)
    change = record["faithfulness"]["lexicon"]["entropy"]["mfg"]
    assert change["difference"] == pytest.approx(change["second"] - change["first"])
    assert change["low"] > 0
    assert record["decisiveness"]["lexicon"]["difference"] == pytest.approx(0.0, abs=1e-9)
    assert (
        compare_record(second, second, draws=20)["faithfulness"]["lexicon"]["hidden"]["cmfg_star"][
            "difference"
        ]
        == 0
    )
    text = render_comparison(record, "A", "B")
    assert "B minus A, 80 questions" in text
    other = table(second.decisiveness, second.confidence, steps=5, groups=[f"q{i + 40}" for i in range(80)])
    shared = compare_record(first, other, draws=20)
    assert (shared["questions"], shared["left_out"]) == (40, 80)
    with pytest.raises(UserError, match="no question"):
        compare_record(first, table({"lexicon": np.ones(4)}, {"entropy": np.ones(4)}, groups=["z"]))


def test_the_published_token_estimate():
    v = np.array([[-2.0, -4.0, -30.0], [-30.0, -30.0, -1.0]])
    mask = np.array([[True, True, False], [True, True, False]])
    np.testing.assert_allclose(published_token(v, mask), [3 / 8, 1.0])
    assert np.isnan(published_token(v, np.zeros_like(mask))).all()


def subject(**fields):
    steps = (Step(0, 1, 0, 3, "a"), Step(3, 4, 3, 5, "b"))
    trace = Trace("t", "q", None, None, (1,), (1, 2, 3, 4, 5), "a\n\nb", "eos", steps=steps, **fields)
    return Subject(trace, "q", "none", False, (2,), fields and None, ())


def test_recorded_statistics_come_first_and_unknown_tokens_are_left_out():
    nan = float("nan")
    found = token_values(
        subject(logprob=(nan, -1.0, -9.0, -2.0, -4.0), entropy=(nan, 1.0, 9.0, nan, nan)), None
    )
    assert found["mean_logprob"] == [pytest.approx(np.exp(-1)), pytest.approx(np.exp(-3))]
    assert found["sum_logprob"][1] == pytest.approx(np.exp(-6))
    assert found["entropy"] == [pytest.approx(np.exp(-1)), None]
    assert found["token"] == [None, None]


def test_files_of_other_traces_are_refused(tmp_path):
    with pytest.raises(UserError, match="run the stage `decisiveness` first"):
        build_table([subject()], tmp_path, {})
    (tmp_path / "decisiveness.jsonl").write_text('{"id": "t", "scores": {"s": [0.5]}}\n')
    with pytest.raises(UserError, match="'t' has 2 steps, its record 1"):
        build_table([subject()], tmp_path, {})
    for line, error in (('{"id": "t"}', "no `scores`"), ('{"scores": {"s": []}}', "jsonl:1: malformed")):
        (tmp_path / "decisiveness.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=error):
            build_table([subject()], tmp_path, {})
    (tmp_path / "decisiveness.jsonl").write_text('{"id": "t", "scores": {"s": [0.5, null]}}\n')
    for row in ("5", '["x", null]'):
        (tmp_path / "hidden.jsonl").write_text(f'{{"id": "t", "q": {row}}}\n')
        with pytest.raises(UserError, match="'t': malformed record of a stage"):
            build_table([subject()], tmp_path, {})
    (tmp_path / "hidden.jsonl").write_text('{"id": "t", "q": [0.25, 0.5], "p": [0.25, 0.35]}\n')
    (tmp_path / "prefix.jsonl").write_text('{"id": "t", "steps": [1], "confidence": [0.9]}\n')
    found = build_table([subject()], tmp_path, {"t": [True, None]})
    assert found.trace_confidence["hidden"].tolist() == [0.35]  # the last p, as published
    np.testing.assert_array_equal(found.confidence["prefix"], [np.nan, 0.9])
    np.testing.assert_array_equal(found.decisiveness["s"], [0.5, np.nan])
    np.testing.assert_array_equal(found.right, [1.0, np.nan])


def test_without_a_readable_wrong_step_there_is_no_probe_and_the_run_goes_on(tmp_path):
    """Verdicts of traces that are longer than the context are of no use to a probe."""
    traces = [dataclasses.replace(subject(), group=f"q{k}", notes=("too_long",)) for k in range(2)]
    why = probe_stage(Stage(traces, tmp_path, {}), None, {"t": [True, False]})
    assert "right and wrong steps that the checkpoint can read" in why


def test_words_that_never_change_have_no_rank_over_traces_of_any_length():
    """Means of 0.9 over three steps and over two differ in their last bit, which is no rank."""
    lengths = np.arange(1, 21)
    trace = np.repeat(np.arange(20), lengths)
    base = table({"s": np.full(20, 0.9)}, {"entropy": np.linspace(0.1, 0.9, 20)}, steps=1)
    long = dataclasses.replace(
        base,
        trace=trace,
        group=base.trace_group[trace],
        index=np.concatenate([np.arange(n) for n in lengths]),
        position=np.zeros(trace.size),
        decisiveness={"s": np.full(trace.size, 0.9)},
        confidence={"entropy": base.confidence["entropy"][trace]},
    )
    found = faithfulness_record(long, "s", "entropy", draws=20)["metrics"]
    assert [found[name]["value"] for name in RANKS] == [None] * 4
