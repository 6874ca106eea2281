"""The audit by hand, and against replays counted one path at a time."""

import itertools
import types
import weakref

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation import audit
from caspo_jax.evaluation.audit import (
    AuditedQuestion,
    audited_questions,
    false_prunes_by_depth,
    oracle_prune,
    sweep_thresholds,
    threshold_sweep,
)
from caspo_jax.evaluation.replay import RecordedPath, replay
from caspo_jax.sampling import SampleConfig
from caspo_jax.types import CatNode, CatTree, Question, Trace


def trace(name, answer, correct):
    return Trace(
        name,
        "q",
        "1",
        None,
        (0,),
        (1, 2),
        "",
        "eos",
        answer,
        correct,
        logprob=(-0.1, -0.1),
        path_confidence=0.9,
    )


def question(name, *paths):
    """paths: (confidences, correct); a boundary every 10 tokens, 5 more to the end."""
    recorded = [
        RecordedPath(
            tuple(range(10, 10 * len(c) + 1, 10)), tuple(c), tuple(range(len(c))), 10 * len(c) + 5, right
        )
        for c, right in paths
    ]
    traces = [trace(f"{name}/{i}", "1" if right else "2", right) for i, (_, right) in enumerate(paths)]
    return AuditedQuestion(name, traces, recorded)


QUESTIONS = [
    question("a", ([0.9, 0.4], True), ([0.8, 0.9], False), ([0.3, 0.9], False)),
    question("b", ([0.2, 0.9], True), ([0.95, 0.95], False)),
    question("c", ([0.5], False), ([0.6], False)),
]


def test_sweep_by_hand():
    rows = threshold_sweep(QUESTIONS, [0.0, 0.45], method="majority", draws=20)
    assert rows[0]["accuracy"] == pytest.approx(1 / 3)  # b is a tie, which the first path, right, wins
    assert rows[0]["tokens"] == pytest.approx((75 + 50 + 30) / 3)
    assert rows[0]["pruned"] == rows[0]["lost"] == 0
    assert np.isnan(rows[0]["right_among_pruned"])
    # At .45: a loses its right path (depth 2) and one wrong one (depth 1); b its right one; c nothing.
    assert rows[1]["pruned"] == pytest.approx(3 / 7)
    assert rows[1]["false_prunes"] == 1.0
    assert rows[1]["right_among_pruned"] == pytest.approx(2 / 3)
    assert rows[1]["lost"] == 1.0
    assert rows[1]["accuracy"] == 0.0
    assert rows[1]["tokens"] == pytest.approx((20 + 25 + 10 + 10 + 25 + 15 + 15) / 3)


def test_depths_by_hand():
    rows = false_prunes_by_depth(QUESTIONS, 0.45)
    assert [(r["depth"], r["right_paths"], r["wrong_paths"]) for r in rows] == [(1, 2, 5), (2, 1, 2)]
    assert [r["false_prunes"] for r in rows] == [0.5, 1.0]
    assert [r["true_prunes"] for r in rows] == [pytest.approx(0.2), 0.0]


def test_oracle_is_pass_at_k_and_bounds_every_threshold():
    oracle = oracle_prune(QUESTIONS)
    assert oracle["accuracy"] == pytest.approx(2 / 3)
    assert oracle["tokens"] == pytest.approx(((25 + 10 + 10) + (25 + 10) + (15 + 10)) / 3)
    rng = np.random.default_rng(0)
    many = [
        question(f"q{i}", *[(rng.random(rng.integers(1, 5)), bool(rng.random() < 0.4)) for _ in range(4)])
        for i in range(40)
    ]
    bound = oracle_prune(many)["accuracy"]
    rows = threshold_sweep(many, sweep_thresholds(many), method="majority", draws=5)
    assert all(row["accuracy"] <= bound for row in rows)
    assert all(a["tokens"] >= b["tokens"] for a, b in itertools.pairwise(rows))
    threshold = rows[6]["threshold"]
    fallen = [(q, i) for q in many for i, _ in replay(q.paths, threshold).pruned]
    assert rows[6]["pruned"] == pytest.approx(len(fallen) / 160)
    depths = false_prunes_by_depth(many, threshold)
    counted = sum(r["right_paths"] * r["false_prunes"] for r in depths if r["right_paths"])
    assert counted == pytest.approx(sum(q.paths[i].correct for q, i in fallen))


def test_without_a_right_path_the_branch_that_spent_most_goes_on():
    one = question("a", ([0.5, 0.5], False), ([], False))  # 10 of 25 tokens, and 5 of 5
    assert oracle_prune([one]) == {"accuracy": 0.0, "tokens": 25 + 5}


def test_sweeps_go_up_to_the_19_20ths_of_the_lowest_confidences():
    lowest = np.arange(1, 101) / 100
    many = [question("q", *[([c], True) for c in lowest], ([], True))]  # the last one has no boundary
    found = sweep_thresholds(many, count=3)
    assert found == [0.0, 0.01, 0.48, 0.95]
    assert sweep_thresholds([question("q", ([], True))]) == [0.0]


def test_traces_meet_their_trees():
    nodes = (CatNode(-1, (1,), (-0.1,), (0.1,), 0.5, 0.5, "finished", "eos"),) * 2
    trees = [CatTree("x/1", (0,), nodes, (0, 0), None), CatTree("x/2", (0,), nodes, (0, 0), None)]
    traces = [trace(f"{t.question_id}/{i}", "1", i == 0) for t in trees for i in range(2)]
    found = audited_questions(traces, trees, "last")
    assert [[t.id for t in q.traces] for q in found] == [["x/1/0", "x/1/1"], ["x/2/0", "x/2/1"]]
    assert [[p.correct for p in q.paths] for q in found] == [[True, False]] * 2
    alone = [CatTree(n, (0,), nodes[:1], (0, 0), None) for n in ("x/1", "x/2")]
    found = audited_questions([trace("x/1", "1", True), trace("x/2", "1", False)], alone, "last")
    assert [len(q.traces) for q in found] == [1, 1]
    with pytest.raises(UserError, match="no gold answer"):
        audited_questions([trace("x/1", "1", None)], alone[:1], "last")


def test_trees_of_a_file_are_let_go_one_after_the_other():
    """They hold every token of every path: gigabytes, of long outputs."""
    refs = []

    def read():
        for name in map(str, range(9)):
            nodes = (CatNode(-1, (1,), (-0.1,), (0.1,), 0.5, 0.5, "finished", "eos"),)
            tree = CatTree(name, (0,), nodes, (0, 0), None)
            refs.append(weakref.ref(tree))
            yield tree
            del tree, nodes
            assert sum(ref() is not None for ref in refs) <= 1

    found = audited_questions([trace(str(i), "1", True) for i in range(9)], read(), "last")
    assert len(found) == len(refs) == 9


SPELLED = [b"a", b"b", b"\n\n", b"Q", b""]


def finish(monkeypatch, prefixes, rest, **settings):
    """Rows of `finish_pruned` where the branches with these prefixes fell and every one would go on with `rest`."""

    def generate(model, tokenizer, questions, config, key, *, batch_size, limits=None):
        found = []
        for i, asked in enumerate(questions):
            limit = config.max_new_tokens if limits is None else limits[i]
            assert len(asked.prompt_ids) + limit <= model.config.context
            ids = tuple(rest[:limit])
            found.append(Trace(asked.id, "q", None, None, (0,), ids, "", "eos" if ids[-1] == 4 else "length"))
        return found

    monkeypatch.setattr(audit, "generate", generate)
    monkeypatch.setattr(audit, "token_bytes", lambda tokenizer, size: SPELLED)
    sample = SampleConfig(max_new_tokens=20, **settings)
    model = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=5, context=4 + 20))
    nodes = tuple(CatNode(-1, ids, (), (), 0.5, 0.5, "pruned", "threshold") for ids in prefixes)
    tree = CatTree("q", (0,) * 4, nodes, (0, 0), 0.9)
    rows = audit.finish_pruned(
        model, None, [Question("q", "q", gold="b")], [tree], sample, None, extract=lambda t: t[-1:], equal=str.__eq__
    )  # fmt: skip
    assert [row["depth"] for row in rows] == [1] * len(prefixes)
    return [row["correct"] for row in rows]


def test_a_branch_is_as_deep_as_the_steps_that_it_closed():
    sure = (0.5, None, 0.7, 0.2)  # the second node is a delimiter alone
    nodes = tuple(CatNode(i - 1, (i, i), (), (), c, c, "closed", None) for i, c in enumerate(sure))
    assert audit._prefix(CatTree("q", (0,), nodes, (0, 0), None), 3) == ([0, 0, 1, 1, 2, 2, 3, 3], 3)


def test_a_pruned_branch_has_the_tokens_that_its_own_limit_left(monkeypatch):
    prefixes = [(0,) * n for n in (18, 3, 15, 14)]
    assert finish(monkeypatch, prefixes, [0] * 4 + [1, 4]) == [False, True, False, True]


def test_a_stop_string_may_begin_before_the_place_where_a_branch_fell(monkeypatch):
    rest = [3, 0, 0, 1, 4]  # "Qaab": the answer is right, after a new question has begun
    assert finish(monkeypatch, [(1, 2)], rest) == [True]
    assert finish(monkeypatch, [(1, 2)], rest, stop=("\n\nQ",)) == [False]
    # One that was complete before it fell ended nothing.
    assert finish(monkeypatch, [(3, 1, 0)], [0, 1, 4], stop=("Qba",)) == [True]
    endless = [1, 3, *[0] * 30]
    assert finish(monkeypatch, [(0, 2, 1)], endless, stop=("bb",)) == [True]  # ended by it, in time
