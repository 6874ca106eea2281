"""The report: constructed traces whose true faithfulness is known, references, missing values."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from caspo_jax import metrics
from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import (
    LexiconScorer,
    Table,
    compare_record,
    faithfulness_record,
    ordering_record,
    pair_up,
    render_comparison,
    render_report,
    report_record,
    step_records,
)
from caspo_jax.evaluation.faithfulness.faithful import best_constant, of_steps, statistics
from caspo_jax.evaluation.faithfulness.pairing import METRICS, Pairing
from caspo_jax.evaluation.faithfulness.skill import skill_statistics
from caspo_jax.tasks.hedging import HEDGES, HOWS, levels

RANKS = ("spearman", "kendall", "trace_spearman", "trace_kendall")


def table(decisiveness, confidence, steps=4, questions=None, right=None, groups=None):
    """Traces of `steps` steps each, one a question, or `questions` of them in turn; their first steps are siblings."""
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
        trace=trace,
        group=names[trace],
        prefix=np.array([names[t] if i % steps == 0 else f"{i}" for i, t in enumerate(trace)], dtype=object),
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


def test_a_record_by_hand():
    """Twelve traces of three steps whose words and confidences are those of their place; one step has no words."""
    d, c = np.tile([0.2, 0.5, 0.9], 12), np.tile([0.3, 0.6, 1.0], 12)
    d[0] = np.nan
    found = faithfulness_record(table({"s": d}, {"entropy": c}, steps=3), "s", "entropy", draws=20)
    assert (found["steps"], found["traces"], found["missing"]) == (35, 12, 1)
    mean = (11 * 0.2 + 12 * 0.5 + 12 * 0.9) / 35
    assert found["mean_decisiveness"] == pytest.approx(mean)
    assert found["mean_confidence"] == pytest.approx((11 * 0.3 + 12 * 0.6 + 12) / 35)
    assert found["metrics"]["gap"]["value"] == pytest.approx(-0.1)
    assert found["metrics"]["cmfg_occupied"]["value"] == pytest.approx(0.9)
    assert found["metrics"]["cmfg"]["value"] == pytest.approx((3 * 0.9 + 7 * 0.5) / 10)
    base = found["baselines"]
    assert base["constant"]["value"] == pytest.approx(mean)
    # A trace's F is the mean over its steps, the first trace's over two.
    assert base["always_decisive"]["mfg"] == pytest.approx((0.8 + 11 * (0.3 + 0.6 + 1) / 3) / 12)
    far = np.abs(mean - np.array([0.3, 0.6, 1.0]))
    assert base["constant"]["mfg"] == pytest.approx(1 - (far[1:].mean() + 11 * far.mean()) / 12)
    # Words are handed on within their place alone, where all are alike.
    assert [base["permuted"]["mfg"][k] for k in ("mean", "low", "high")] == pytest.approx([0.9] * 3)
    path = found["trajectory"]
    assert path["position"] == pytest.approx(np.arange(10) / 10 + 0.05)
    assert path["steps"] == [11, 0, 0, 0, 0, 12, 0, 0, 0, 12]  # parts [a, b), the last with its end
    assert [path["decisiveness"][k] for k in (0, 1, 5, 9)] == [
        pytest.approx(0.2),
        None,
        0.5,
        pytest.approx(0.9),
    ]
    assert [path["confidence"][k] for k in (0, 5, 9)] == pytest.approx([0.3, 0.6, 1.0])
    assert found["coverage"]["bin_counts"] == [0, 0, 0, 11, 0, 0, 12, 0, 0, 12]
    assert found["coverage"]["occupied_bins"] == 3
    assert sum(found["coverage"]["mass_counts"]) == 35


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


def by_question(follow, seed, questions=40):
    """Confidence differs by question, and so do the words: with it by `follow`, the rest by themselves."""
    rng = np.random.default_rng(seed)
    sure, own = np.repeat(rng.normal(size=(2, questions)), 5, axis=1)
    noise = rng.normal(size=(2, 5 * questions))
    c = np.clip(0.75 + 0.2 * sure + 0.03 * noise[0], 0, 1)
    said = follow * sure + np.sqrt(1 - follow**2) * own
    d = np.clip(0.8 + 0.1 * said + 0.02 * noise[1], 0, 1)
    return table({"s": d}, {"entropy": c}, steps=5)


@pytest.mark.parametrize("follow", [0.0, 0.7])
def test_the_interval_of_a_skill_is_as_wide_as_skills_differ(follow):
    """M_permuted held fixed, it would be 2.5 times as wide, and no set of words would ever have a skill."""
    found = []
    for seed in range(60):
        statistic, groups = skill_statistics(pair_up(by_question(follow, seed), "s", "entropy"))["mfg"]
        found.append(metrics.bootstrap_interval(statistic, groups, draws=100))
    spread = 3.92 * np.std([i.value for i in found])
    assert np.mean([i.high - i.low for i in found]) == pytest.approx(spread, rel=0.3)
    apart = np.mean([not i.low <= 0.0 <= i.high for i in found])
    assert apart > 0.95 if follow else apart < 0.15
    known = 0.319 if follow else 0.0  # of 8,000 questions
    assert np.mean([i.value for i in found]) == pytest.approx(known, abs=0.03)


def test_the_mean_over_permutations_is_found_once_a_draw(monkeypatch):
    asked = []

    def counted(*given):
        expected = found(*given)
        return lambda weights: asked.append(0) or expected(weights)

    found = metrics.permuted_faithfulness
    monkeypatch.setattr(metrics, "permuted_faithfulness", counted)
    statistics = skill_statistics(pair_up(by_question(0.7, 0), "s", "entropy"))
    for name in METRICS:
        metrics.bootstrap_interval(*statistics[name], draws=20)
    assert len(asked) == 1 + 20  # for all of METRICS


def test_skills_are_of_the_questions_that_are_drawn():
    first, second = (by_question(follow, 3) for follow in (0.0, 0.7))
    for t in (first, second):
        report = faithfulness_record(t, "s", "entropy", draws=200)
        for name in METRICS:
            permuted = report["baselines"]["permuted"][name]
            value = report["metrics"][name]["value"]
            assert report["skill"][name]["value"] == pytest.approx(
                (value - permuted["mean"]) / (1 - permuted["mean"])
            )
            drawn = metrics.permutation_baseline(
                t.decisiveness["s"],
                t.confidence["entropy"],
                t.index,
                {name: of_steps(pair_up(t, "s", "entropy"))[name]},
                200,
            )[name]
            assert permuted["mean"] == pytest.approx(drawn.mean, abs=0.005)
    change = compare_record(first, second, draws=200)["faithfulness"]["s"]["entropy"]["skill_mfg"]
    assert change["second"] == pytest.approx(report["skill"]["mfg"]["value"])
    assert 0 < change["low"] < change["difference"] < change["high"] < 2 * change["difference"]


def test_a_question_drawn_twice_is_two_questions():
    """Its words are handed on twice as well, and those of a question that is not drawn never."""
    t, drawn = by_question(0.7, 0, questions=6), np.array([2, 0, 1, 1, 3, 0])
    rows = np.concatenate([np.arange(5 * q, 5 * q + 5) for q in np.repeat(np.arange(6), drawn)])
    again = table({"s": t.decisiveness["s"][rows]}, {"entropy": t.confidence["entropy"][rows]}, steps=5)
    found, expected = (skill_statistics(pair_up(x, "s", "entropy")) for x in (t, again))
    for name in METRICS:
        assert found[name][0](drawn.astype(float)) == pytest.approx(
            expected[name][0](np.ones(7)), abs=1e-9
        ), name


def test_words_that_change_only_with_the_place_have_a_skill_of_exactly_none():
    rng = np.random.default_rng(5)
    t = table({"s": np.tile([0.9, 0.4, 0.7, 0.3], 30)}, {"entropy": rng.random(120)})
    found = faithfulness_record(t, "s", "entropy", draws=50)["skill"]
    assert found["mfg"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_trivial_words_score_high_without_skill():
    """ANCHORS: a constant D scores up to .96 on confidences in [.7, .85]."""
    rng = np.random.default_rng(0)
    c = rng.uniform(0.7, 0.85, 200)
    found = faithfulness_record(table({"s": np.full(200, 0.78)}, {"entropy": c}), "s", "entropy", draws=50)
    assert found["metrics"]["cmfg_star"]["value"] > 0.95
    assert found["metrics"]["mfg"]["value"] > 0.95
    assert found["baselines"]["permuted"]["mfg"]["mean"] == pytest.approx(found["metrics"]["mfg"]["value"])
    assert all(entry == dict.fromkeys(("value", "low", "high")) for entry in found["skill"].values())
    assert found["metrics"]["spearman"]["value"] is None
    assert found["metrics"]["cmfg"]["value"] < 0.7  # eight empty bins count .5
    assert found["coverage"]["occupied_bins"] == 2
    best = found["baselines"]["best_constant"]
    assert best["value"] == pytest.approx(np.median(c))
    assert best["mfg"] >= found["baselines"]["always_decisive"]["mfg"]


def test_words_that_differ_by_rounding_alone_have_no_skill():
    rng = np.random.default_rng(7)
    d = 0.78 + 1e-14 * rng.integers(0, 3, 80)
    found = faithfulness_record(table({"s": d}, {"entropy": rng.random(80)}), "s", "entropy", draws=5)
    assert all(entry == dict.fromkeys(("value", "low", "high")) for entry in found["skill"].values())


@pytest.mark.parametrize("seed", range(12))
def test_the_best_constant_is_the_best_of_all(seed):
    """Against a fine grid and all confidences, for traces of different lengths with missing steps."""
    rng = np.random.default_rng(seed)
    d, c = rng.random(60), rng.random(60) ** 2
    c[rng.random(60) < 0.5] = np.nan  # also whole traces, so that lengths differ
    if seed % 2:
        c = np.round(c, 1)
    t = table({"s": d}, {"entropy": c}, steps=6)
    found = faithfulness_record(t, "s", "entropy", draws=1)["baselines"]["best_constant"]
    p = pair_up(t, "s", "entropy")
    mfg = of_steps(p)["mfg"]
    assert found["mfg"] == pytest.approx(mfg(1 - np.abs(found["value"] - p.c)))
    tried = [mfg(1 - np.abs(value - p.c)) for value in (*np.linspace(0, 1, 1001), *p.c)]
    assert found["mfg"] >= max(tried) - 1e-12


def test_a_long_trace_does_not_choose_the_best_constant():
    trace = np.concatenate([np.repeat(np.arange(9), 2), np.full(40, 9)])
    c = np.where(trace < 9, 0.9, 0.3)
    none = np.zeros(10)
    p = Pairing(c, c, trace, trace, trace, none, none, none, none)
    assert best_constant(p) == pytest.approx(0.9)
    halves = dataclasses.replace(p, c=np.where(trace < 5, 0.9, 0.3))
    assert best_constant(halves) == pytest.approx(0.6)  # five traces each: anything between is as good


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
    p = pair_up(t, "s", "entropy")  # of a trace too only the steps that have both
    np.testing.assert_allclose(p.trace_d, [d[kept & (t.trace == k)].mean() for k in np.unique(t.trace[kept])])
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
    seen = []
    report = report_record(
        t, {"traces": 80}, draws=20, progress=lambda *at: seen.append(at), left_out={"probe": "no verdicts"}
    )
    assert seen == [(done, len(seen)) for done in range(1, len(seen) + 1)]
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
    assert "have no score" not in text
    words = np.array([np.nan] * 3 + [0.5] * (t.trace.size - 3))
    judged = {"judged": 90, "unparsed": 81}
    silent = report_record(
        dataclasses.replace(t, decisiveness={"judge": words}), {"traces": 80}, draws=5, continuations=judged
    )
    text = render_report(silent)
    assert f"judge: 3 of {t.trace.size} steps have no score" in text
    assert "prefix: of 81 of 90 continuations it could not be told" in text
    unverified = report_record(constructed("right"), {"traces": 80}, draws=5)
    assert unverified["calibration"] == {}


def test_calibration_tells_siblings_from_one_another_or_says_that_there_are_none():
    rng = np.random.default_rng(4)
    c = rng.random(60)
    right = (rng.random(60) < c).astype(float)
    t = table({"s": rng.random(60)}, {"entropy": c}, steps=3, questions=5, right=right)
    first = t.index == 0
    want = metrics.within_prefix_auroc(c[first], right[first], t.group[first])
    assert 0 < want.groups <= 5
    report = report_record(t, {"traces": 20}, draws=20)
    found = report["calibration"]["entropy"]
    assert found["within_prefix_auroc"]["value"] == pytest.approx(want.value)
    assert found["within_prefix_groups"] == want.groups
    assert found["within_question_groups"] == metrics.within_question_auroc(c, right, t.group).groups
    assert f"({want.groups} prefixes)" in render_report(report)
    alone = report_record(
        dataclasses.replace(t, prefix=np.arange(60).astype(object)), {"traces": 20}, draws=20
    )
    found = alone["calibration"]["entropy"]
    assert (found["within_prefix_auroc"]["value"], found["within_prefix_groups"]) == (None, 0)
    assert "n/a (0 prefixes)" in render_report(alone)


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


def test_one_question_has_values_and_no_intervals():
    rng = np.random.default_rng(6)
    right = rng.integers(0, 2, 40)
    right[:4] = 0, 0, 1, 1
    first, second = (
        table({"s": rng.random(40)}, {"entropy": rng.random(40)}, questions=1, right=right) for _ in range(2)
    )
    reports = [report_record(t, {"traces": 10}, draws=20) for t in (first, second)]
    for report in reports:
        json.dumps(report, allow_nan=False)
        block = report["faithfulness"]["s"]["entropy"]
        for entry in (*block["metrics"].values(), *block["skill"].values()):
            assert entry["value"] is not None
            assert (entry["low"], entry["high"]) == (None, None)
        assert "nan" not in render_report(report)
    record = compare_record(first, second, draws=20)
    json.dumps(record, allow_nan=False)
    change = record["faithfulness"]["s"]["entropy"]["mfg"]
    assert change["difference"] is not None
    assert (change["low"], change["high"]) == (None, None)
    assert "nan" not in render_comparison(record, "A", "B")
    found = ordering_record(reports)["s"]["entropy"]
    assert {entry["verdict"] for entry in found.values()} <= {"not", "undefined"}
