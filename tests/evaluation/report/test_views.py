"""Numbers of the views against what they are defined by."""

import dataclasses
import json
import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from caspo_jax.errors import UserError
from caspo_jax.evaluation.report.choice import choose
from caspo_jax.evaluation.report.figures import reliability_diagram, strategies
from caspo_jax.evaluation.report.folder import TraceFile, TreeFile
from caspo_jax.evaluation.report.svg import Panel, label, ticks
from caspo_jax.evaluation.report.tables import run_tables
from caspo_jax.evaluation.report.tree_view import _tree, path_weights
from caspo_jax.records import trace_from_record
from caspo_jax.sampling import vote
from caspo_jax.types import Trace
from tests.evaluation.report.records import tokenizer, trace, write_lines
from tests.evaluation.report.runs import SUMMARY, evaluate_run, faithfulness_run, large_run, small_run


def path(ids, logprob, confidence, answer):
    return Trace(
        id="q", question=None, gold=None, prompt=None, prompt_ids=(), token_ids=tuple(ids), text="", answer=answer,
        finish_reason="eos", logprob=tuple(logprob), path_confidence=confidence,
    )  # fmt: skip


paths = st.lists(
    st.builds(
        lambda ids, p, c, a: path(ids, [-p] * len(ids), c, a),
        st.lists(st.integers(0, 2), min_size=1, max_size=3),
        st.floats(0.01, 3),
        st.floats(0.05, 1),
        st.sampled_from(["1", "2"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(paths, st.sampled_from(["majority", "confidence", "sequence"]))
def test_path_weights_add_up_to_the_vote(found, method):
    weights = path_weights(found, method)
    _, votes = vote(found, method)
    for answer, total in votes.items():
        parts = [w for w, p in zip(weights, found, strict=True) if w is not None and p.answer == answer]
        assert sum(parts) == pytest.approx(total)


def test_a_duplicate_has_no_weight_in_the_sequence_vote():
    twice = [path([1, 2], [-1, -1], 0.5, "7")] * 2
    assert path_weights(twice, "sequence") == [1.0, None]


OLD_TREE = {
    "question_id": "q",
    "parent": [-1, -1, -1],
    "status": ["finished"] * 3,
    "reason": [None] * 3,
    "confidence": [0.6, 0.5, 0.9],
    "path_confidence": [0.6, 0.5, 0.9],
    "token_ids": [[1], [2], [3]],
    "logprob": [[-1.0]] * 3,
    "entropy": [[1.0]] * 3,
}


def drawn(record, answers, **file):
    """The tree as the page shows it, its paths with these answers."""
    known = {}
    for i, answer in enumerate(answers):
        known[(i + 1,), ()] = path([i + 1], [-1.0], None, answer)
    return _tree(record, TreeFile("cat", [record], **file), known, None, {})


def test_a_tree_shows_what_its_search_elected():
    """Not what weights of the page's own would: here the elected answer is neither the heaviest nor the first."""
    record = OLD_TREE | {"answer": "7", "votes": {"8": 0.5, "7": 0.5}}
    assert drawn(record, ["8", "8", "7"], vote="confidence", gamma=25.0)["answers"] == [
        ["7", 0.5],
        ["8", 0.5],
    ]
    nothing = drawn(OLD_TREE | {"answer": None, "votes": {}}, [None] * 3, vote="sequence")
    assert nothing["answers"] == []


@pytest.mark.parametrize(
    ("answers", "file", "shown"),
    [
        (["8", "8", "7"], {"vote": "confidence"}, [["8", 1.1], ["7", 0.9]]),
        (["8", "8", "7"], {"vote": "confidence", "gamma": 2.0}, [["7", 0.81], ["8", 0.61]]),
        (["8", "8", "7"], {"vote": "best_path"}, [["7", 0.9], ["8", 0.6]]),
        (["1/2", r"\frac{1}{2}", "7"], {"vote": "confidence", "kind": "math"}, [["1/2", 1.1], ["7", 0.9]]),
        (["1/2", "0.5", "7"], {"vote": "confidence", "kind": "task"}, [["7", 0.9], ["1/2", 0.6], ["0.5", 0.5]]),
    ],
)  # fmt: skip
def test_a_tree_that_names_no_answer_is_counted_as_the_search_counts(answers, file, shown):
    assert drawn(OLD_TREE, answers, **file)["answers"] == shown


def test_how_a_search_voted_is_read_of_its_records_or_its_manifest(tmp_path):
    from caspo_jax.evaluation.report import load_run

    record = {"schema": {"name": "tree", "version": 1}} | OLD_TREE
    manifest = {"config": {"sampling": {"vote": "confidence", "gamma": 25.0}, "answers": "math"}}
    write_lines(tmp_path / "old.jsonl", [record])
    (tmp_path / "old.jsonl.manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    write_lines(tmp_path / "new.jsonl", [record | {"vote": "best_path", "gamma": 2.0}])
    write_lines(tmp_path / "neither.jsonl", [record])
    found = {f.name: (f.vote, f.gamma, f.kind) for f in load_run(tmp_path).trees}
    assert found == {
        "old": ("confidence", 25.0, "math"),
        "new": ("best_path", 2.0, None),
        "neither": ("sequence", 1.0, None),
    }
    write_lines(tmp_path / "new.jsonl", [record | {"votes": [1]}])
    with pytest.raises(UserError, match=r"new\.jsonl:1: `votes` of a tree"):
        load_run(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(1, 60))
def test_choosing_keeps_to_the_limit_and_to_the_order(sizes, most):
    base = trace_from_record({"id": "x", "token_ids": [], "text": ""})
    traces = [dataclasses.replace(base, id=f"q{q}/{i}") for q, n in enumerate(sizes) for i in range(n)]
    chosen = choose(traces, most)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= most
    assert chosen
    if len(traces) <= most:
        assert len(chosen) == len(traces)
    long = [dataclasses.replace(t, token_ids=(0,) * 10) for t in traces]
    assert len(choose(long, most, most_tokens=50)) <= max(5, min(sizes))


def test_traces_that_are_not_shown_keep_no_statistics_of_their_tokens_and_the_page_is_the_same(tmp_path):
    """Those of all rounds would take more memory than there is; of the steps all are counted."""
    from caspo_jax.evaluation.report import load_run, render

    run = load_run(large_run(tmp_path / "run", 40))
    lean = load_run(tmp_path / "run", most_traces=16)
    assert render([lean], most_traces=16) == render([run], most_traces=16)
    held = [t.entropy is not None for file in lean.traces for t in file.traces]
    assert sum(held) == sum(len(choose(file.traces, 16)) for file in run.traces) < len(held)
    assert all(t.entropy is not None for file in run.traces for t in file.traces)


@settings(max_examples=60, deadline=None)
@given(st.floats(-100, 100), st.floats(0.01, 1e6))
def test_ticks_are_round_and_inside(low, span):
    found = ticks(low, low + span)
    assert all(low - 1e-6 * span <= t <= low + span * (1 + 1e-6) for t in found)
    assert len(found) <= 11
    if len(found) > 1:
        gap = found[1] - found[0]
        assert len({label(t, gap) for t in found}) == len(found)  # no two ticks read the same


def test_a_panel_maps_its_corners():
    panel = Panel((0, 2), (-1, 1), left=40, right=10, top=8, bottom=34, height=200, width=300)
    assert panel.at(0, -1) == (40, 166)
    assert panel.at(2, 1) == (290, 8)


def test_the_reliability_diagram_counts_every_judged_step():
    tok = tokenizer()
    records = [
        trace(tok, f"q/{k}", [("one", "correct", 0.9), ("two", "wrong" if k % 3 else "unknown", 0.4)])
        for k in range(9)
    ]
    file = TraceFile("samples/base/annotated", [trace_from_record(r) for r in records], [[]] * 9)
    figure = reliability_diagram([file])
    counts = [int(n) for n in re.findall(r"(\d+) steps", figure.svg)]
    assert sum(counts) == sum(s["verdict"] != "unknown" for r in records for s in r["steps"])
    assert figure.legend[0] == ("s0", "base")


def test_strategies_draw_every_accuracy_at_its_place():
    figure = strategies(SUMMARY["policies"], 48)
    marks = re.findall(r"<title>(\S+), (\w+): ([\d.]+) ± [\d.]+</title>.*?cx=\"([\d.]+)\"", figure.svg)
    assert len(marks) == 4
    xs, values = np.array([float(m[3]) for m in marks]), np.array([float(m[2]) for m in marks])
    assert np.corrcoef(xs, values)[0, 1] == pytest.approx(1.0, abs=1e-6)


def test_other_tables_and_decisiveness_beside_the_traces(tmp_path):
    """What `evaluate` and `faithfulness` leave in their folders."""
    from caspo_jax.evaluation.report import load_run

    tok = tokenizer()
    write_lines(
        tmp_path / "traces.jsonl", [trace(tok, "a", [("one", "unknown", 0.9), ("two", "unknown", 0.8)])]
    )
    write_lines(
        tmp_path / "decisiveness.jsonl",
        [{"id": "a", "scores": {"lexicon": [0.5, None], "judge": [1.0, 1.0]}}],
    )
    rows = [
        {"strategy": "cat", "accuracy": 0.5, "tokens": 190},
        {"strategy": "greedy", "accuracy": None, "tokens": 47},
    ]
    (tmp_path / "table.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    run = load_run(tmp_path)
    assert run.traces[0].beside[0].decisiveness == [0.5, None]
    (table,) = run_tables([run])
    assert table.title == "Strategies"
    assert not table.aside
    assert [[row[i].text for i in (0, 2, 3)] for row in table.rows] == [
        ["CaT", "0.500", "190"],
        ["greedy", "–", "47"],
    ]


def test_tables_of_a_summary(tmp_path):
    from caspo_jax.evaluation.report import load_run

    run = load_run(small_run(tmp_path / "run"))
    policies, strategy, other = run_tables([run])
    assert [row[0].text for row in policies.rows] == ["base", "round_1"]
    column = [c[0] for c in policies.columns].index("steps right")
    assert policies.rows[1][column].best
    assert not policies.rows[0][column].best
    assert policies.rows[0][column].under == "[.730, .770]"
    assert [c.text for c in strategy.rows[1]] == ["CaT", "0.800", "190", "0.900", "190"]
    assert other.aside
    assert other.title == "final minus · sft"
    assert [c.text for c in other.rows[0]] == ["step accuracy", "0.010", "−0.020", "0.040"]


def test_of_equally_right_strategies_the_cheapest_is_named(tmp_path):
    from caspo_jax.evaluation.report import load_run
    from caspo_jax.evaluation.report.headline import headlines

    table = evaluate_run(tmp_path / "run") / "table.json"
    whole = json.loads(table.read_text())
    rows = whole["rows"]
    right = {**rows[0], "accuracy": 1.0}
    whole["rows"] = [
        {**right, "strategy": "self_consistency", "size": "4", "tokens": 270.0},
        {**right, "strategy": "greedy", "size": "1", "tokens": 60.0},
        *rows,
    ]
    table.write_text(json.dumps(whole))
    said = headlines(load_run(tmp_path / "run"))
    assert said[0].startswith("On graph (24 questions) greedy is right most often: 1.000")
    assert "at 60 tokens; CaT (4):" in said[0]


def test_what_evaluate_found_in_a_sentence_and_in_tables(tmp_path):
    from caspo_jax.evaluation.report import load_run
    from caspo_jax.evaluation.report.headline import headlines

    run = load_run(evaluate_run(tmp_path / "run"))
    said = headlines(run)
    assert said[0].startswith(
        "On graph (24 questions) CaT (4) is right most often: 0.850 [.750, .950] at 190 tokens."
    )
    assert said[1] == (
        "Paired by question, at or near its own cost, CaT (4) is better than greedy; not to be told apart from sequence vote."
    )
    assert said[-1] == (
        "Of 2 confidences, mean_logprob best tells right steps from wrong ones: AUROC 0.930 [.880, .980]; entropy 0.860."
    )
    tables = {t.title: t for t in run_tables([run])}
    strategies = tables["Strategies: graph"]
    assert [c.text for c in strategies.rows[1]] == ["CaT", "4", "0.850", "190", "191", "0.250"]
    assert strategies.rows[1][2].best
    assert [c.text for c in tables["CaT against the others: graph"].rows[0]] == [
        *("CaT, 4", "greedy, 1", "+0.150", "< .001", "190", "188", "above"),
    ]
    answers = tables["Confidence in answers: graph"]
    assert [c[0] for c in answers.columns][3:6] == ["AUROC", "within question", "bias"]
    assert [[c.text for c in row[:5]] for row in answers.rows] == [
        ["greedy, 1", "24", "0.700", "0.800", "n/a"],
        ["sample, 1", "24", "0.700", "0.800", "0.750"],
    ]
    assert [row[4].under for row in answers.rows] == ["0 questions", "9 questions"]
    assert answers.rows[0][3].under == "[.700, .900]"
    confidences = tables["Confidences of steps"]
    assert confidences.rows[0][1].best
    assert [c[0] for c in confidences.columns[2:4]] == ["within question", "within prefix"]
    assert [(c.text, c.under) for c in confidences.rows[0][2:4]] == [
        ("0.930", "7 questions"),
        ("n/a", "0 prefixes"),
    ]


def test_confidences_of_steps_have_a_table_of_their_own(tmp_path):
    """The table of policies is not the place for every figure; summaries of earlier versions hold some of them."""
    from caspo_jax.evaluation.report import load_run

    old = {
        "name": "base",
        "entropy_auroc": 0.84,
        "within_prefix_auroc": 0.54,
        "bias": 0.1,
        "logprob_auroc": 0.93,
    }
    new = old | {"within_prefix_groups": 7, "within_question_groups": 12, "ece_scaled": 0.05}
    new |= {
        "name": "round_1",
        "sum_logprob_auroc": 0.9,
        "sum_logprob_bias": -0.3,
        "intervals": {"bias": [0.05, 0.15]},
    }
    summary = {"policies": [p | {"step_accuracy": 0.8} for p in (old, new)]}
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    tables = {t.title: t for t in run_tables([load_run(tmp_path)])}
    first = [c[0] for c in tables["Policies, on sampled traces"].columns]
    assert first == ["policy", "steps right", "AUROC"]
    table = tables["Confidence of steps, on sampled traces"]
    columns = [c[0] for c in table.columns]
    assert columns == ["policy", "confidence", "AUROC", "within prefix", "bias", "ECE scaled"]
    assert [[c.text for c in row[:3]] for row in table.rows] == [
        ["base", "exp(−entropy)", "0.840"],
        ["base", "exp(mean log-prob)", "0.930"],
        ["round_1", "exp(−entropy)", "0.840"],
        ["round_1", "exp(mean log-prob)", "0.930"],
        ["round_1", "exp(sum of log-probs)", "0.900"],
    ]
    assert [table.rows[i][3].under for i in (0, 2)] == ["", "7 prefixes"]
    assert table.rows[2][4].under == "[.050, .150]"
    assert table.rows[4][4].text == "−0.300"


def test_what_faithfulness_found_in_a_sentence_and_in_tables(tmp_path):
    from caspo_jax.evaluation.report import load_run
    from caspo_jax.evaluation.report.headline import headlines

    run = load_run(faithfulness_run(tmp_path / "run"))
    said = headlines(run)
    assert said[0] == (
        "The words sound 0.55 sure, the model is 0.48 sure (entropy, 12 steps); "
        "the words follow the model at a rank correlation of +0.80."
    )
    assert "a skill of +0.330 [.280, .380]" in said[1]
    tables = run_tables([run])
    words, trivial, calibration, agreement = tables
    assert [c.text for c in words.rows[0]][:4] == ["entropy", "0.550", "0.480", "0.800"]
    assert len(words.rows) == 2  # an estimator without a step is left out
    assert [c.text for c in trivial.rows[0]] == [
        *("entropy", "MFG", "0.800", "0.700", "0.600", "0.600", "0.600", "0.330")
    ]
    assert calibration.rows[0][1].under == "[.750, .850]"
    within = [c[0] for c in calibration.columns].index("within prefix")
    found = [(row[within].text, row[within].under) for row in calibration.rows]
    assert found == [("0.800", "[.750, .850] 3 prefixes"), ("n/a", "0 prefixes")]
    assert agreement.aside
    assert "could not be told" not in words.note

    file = tmp_path / "run" / "report.json"
    report = json.loads(file.read_text())
    report["decisiveness"] = {"judge": {"steps": 9, "missing": 3}}
    report["continuations"] = {"judged": 90, "unparsed": 81}
    file.write_text(json.dumps(report))
    words, trivial, *_ = run_tables([load_run(tmp_path / "run")])
    assert "judge: 3 of 12 steps have no score of it. prefix: of 81 of 90 continuations" in words.note
    assert "of 12 steps have no score" not in trivial.note


def test_figures_without_intervals_read_as_figures(tmp_path):
    """Those of a single question."""
    from caspo_jax.evaluation.report import load_run
    from caspo_jax.evaluation.report.headline import headlines

    def without(value):
        if isinstance(value, list):
            return [without(v) for v in value]
        if not isinstance(value, dict):
            return value
        ends = ("low", "high", "auroc_low", "auroc_high")
        return {k: None if k in ends else without(v) for k, v in value.items()}

    said = []
    for folder in (evaluate_run(tmp_path / "evaluate"), faithfulness_run(tmp_path / "words")):
        for file in folder.glob("*.json"):
            file.write_text(
                json.dumps(without(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8"
            )
        said += headlines(load_run(folder))
    text = "\n".join(said)
    assert "0.850 at 190 tokens." in text
    assert "AUROC 0.930; entropy" in text
    assert "a skill of +0.330 (0:" in text


@pytest.mark.parametrize(
    "spread, said",
    [(0.0, "the words never change"), (1e-16, "the words never change"), (0.2, "cannot be told")],
)
def test_words_are_not_said_to_be_constant_where_only_the_confidence_is(tmp_path, spread, said):
    from caspo_jax.evaluation.report import load_run
    from caspo_jax.evaluation.report.headline import headlines

    file = faithfulness_run(tmp_path / "run") / "report.json"
    report = json.loads(file.read_text(encoding="utf-8"))
    scorer, blocks = next(iter(report["faithfulness"].items()))
    report["decisiveness"] = {scorer: {"std": spread}}
    for block in blocks.values():
        if block.get("steps"):
            block["metrics"]["spearman"]["value"] = None
    file.write_text(json.dumps(report), encoding="utf-8")
    assert said in headlines(load_run(file.parent))[0]


@pytest.mark.parametrize(
    "name, value",
    [
        ("summary", [{"a": 1, "b": 2}]),
        ("table", {"rows": [{"a": 1, "b": 2}]}),
        ("table", {"rows": [{"strategy": "cat", "accuracy": 0.5, "tokens": 5}]}),
        ("confidences.steps", {"rows": [{"auroc": 0.5, "b": 2}]}),
    ],
)
def test_tables_of_ones_own_are_shown_whatever_their_file_is_called(tmp_path, name, value):
    from caspo_jax.evaluation.report import write_report

    (tmp_path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    assert "<table" in write_report([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_manifest_that_is_no_record_is_named(tmp_path):
    from caspo_jax.evaluation.report import load_run

    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(UserError, match=r"manifest\.json: expected a JSON object"):
        load_run(tmp_path)


def test_estimates_fill_what_the_steps_lack(tmp_path):
    """Confidence from `entropy`, verdicts from the report's; words minus confidence as the trace's overstatement."""
    from caspo_jax.evaluation.report import load_run
    from caspo_jax.evaluation.report.trace_view import overstatement

    (file,) = load_run(faithfulness_run(tmp_path / "run")).traces
    trace, beside = file.traces[1], file.beside[1]
    assert [s.confidence for s in trace.steps] == pytest.approx([0.25, 0.45, 0.65])
    assert [s.verdict for s in trace.steps] == ["correct", "correct", "wrong"]
    assert overstatement(trace, beside) == pytest.approx((0.3 - 0.25 + 0.95 - 0.45 + 0.4 - 0.65) / 3)
