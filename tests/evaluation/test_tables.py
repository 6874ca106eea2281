"""Tables and strategies against counts made by hand."""

import dataclasses

import numpy as np
import pytest

from caspo_jax.evaluation import Evaluation, policy_record
from caspo_jax.evaluation.strategies import Outcome, matched_counts, pool_votes
from caspo_jax.evaluation.tables import paired, tabulate, values
from caspo_jax.types import Question, Step, Trace


def step(at, verdict, entropy, logprob_confidence):
    return Step(at, at + 1, at, at + 1, "s", logprob_confidence, entropy, verdict, "v")


def trace(verdicts, correct, answer="1", entropies=None, logprob=-0.5, ids=None):
    entropies = entropies or [0.1 * (i + 1) for i in range(len(verdicts))]
    steps = tuple(step(i, v, h, np.exp(-h)) for i, (v, h) in enumerate(zip(verdicts, entropies)))
    token_ids = ids or tuple(range(len(verdicts)))
    n = len(token_ids)
    return Trace(
        "t", "q", "1", None, (0,), token_ids, "", "eos", answer, correct, steps=steps,
        entropy=(0.5,) * n, logprob=(logprob,) * n, path_confidence=float(np.exp(logprob)),
    )  # fmt: skip


TRACES = [
    trace(["correct", "correct", "correct"], True),
    trace(["correct", "wrong", "correct"], True),  # flawed, yet right
    trace(["wrong", "correct", "correct"], False),
    trace(["correct", "correct", "unknown"], False),
]
IDS = ["a", "a", "b", "b"]


def test_values_by_hand():
    found = values(tabulate(TRACES, IDS))
    assert found["step_accuracy"] == pytest.approx(9 / 11)
    assert found["answer_accuracy"] == 0.5
    assert found["flawed_correct_rate"] == 0.5
    assert found["all_steps_right"] == 0.5  # the first and the last, of whose steps one has no verdict
    # Up to and including the first wrong step: 3 of 3, 1 of 2, 0 of 1, 2 of 2.
    assert found["first_error_accuracy"] == pytest.approx(6 / 8)
    wrong, right = [0.2, 0.1], [0.1, 0.2, 0.3, 0.1, 0.3, 0.2, 0.3, 0.1, 0.2]
    assert found["entropy_gap"] == pytest.approx(np.mean(wrong) - np.mean(right))
    concordant = np.mean([(r < w) + 0.5 * (r == w) for r in right for w in wrong])
    assert found["entropy_auroc"] == pytest.approx(concordant)
    assert found["bias"] == pytest.approx(np.mean(np.exp(-np.array(wrong + right))) - 9 / 11)
    assert found["tokens_per_trace"] == 3


def test_a_step_s_likelihood_stands_beside_its_entropy():
    """exp(sum of log-probs), where it is given: the pooled AUROC and calibration of another confidence."""
    likelihoods = [[0.9, 0.8, 0.7], [0.9, 0.1, 0.8], [0.2, 0.9, 0.9], [0.6, 0.7, 0.8]]
    tables = tabulate(TRACES, IDS, likelihoods)
    found = values(tables)
    given = np.array([0.9, 0.8, 0.7, 0.9, 0.1, 0.8, 0.2, 0.9, 0.9, 0.6, 0.7])  # the last has no verdict
    np.testing.assert_array_equal(tables.likelihood, given)
    assert found["sum_logprob_auroc"] == 1.0
    assert found["sum_logprob_bias"] == pytest.approx(given.mean() - 9 / 11)
    assert {"sum_logprob_ece_scaled", "within_question_sum_logprob_auroc"} <= found.keys()
    assert not any("sum_logprob" in name for name in values(tabulate(TRACES, IDS)))


def test_a_policy_s_record_says_over_how_many_groups():
    evaluation = Evaluation("base", "policy", tabulate(TRACES, IDS, [[0.5] * 3] * 4), {})
    record = policy_record(evaluation, None, draws=5)
    assert record["within_question_groups"] == 2  # both questions have right and wrong steps
    assert record["within_prefix_groups"] == 2  # the second steps of question a, the first ones of question b
    for name in ("ece_scaled", "within_question_logprob_auroc", "sum_logprob_auroc", "sum_logprob_brier"):
        assert record[name] is not None, name
        assert len(record["intervals"][name]) == 2, name


def test_strategies_are_paired_by_question():
    tables = tabulate(TRACES, IDS)

    def evaluation(**right):
        outcomes = {name: Outcome(np.array(r, float), np.ones(3), {}) for name, r in right.items()}
        return Evaluation("p", "policy", tables, outcomes)

    new, base = evaluation(cat=[1, 1, 1], greedy=[0, 1, 1]), evaluation(cat=[0, 0, 1], majority=[1, 1, 1])
    record = policy_record(new, base, draws=200)["paired_with_base"]
    assert record["cat_accuracy"]["difference"] == pytest.approx(2 / 3)  # the policy's less the base's
    assert 0 <= record["cat_accuracy"]["low"] <= record["cat_accuracy"]["high"] == 1
    assert not {"greedy_accuracy", "majority_accuracy"} & record.keys()
    assert record["step_accuracy"]["difference"] == 0.0


def test_a_policy_differs_from_itself_by_nothing():
    tables = tabulate(TRACES, IDS)
    for name, interval in paired(tables, tables, draws=50).items():
        if not np.isnan(interval.value):
            assert interval.value == (1.0 if name.endswith("_ratio") else 0.0), name
            assert interval.low == interval.high == interval.value, name


def test_matched_counts_spend_the_budget():
    rng = np.random.default_rng(0)
    pool = rng.integers(20, 80, size=(300, 10))
    spent = np.cumsum(pool, axis=1)
    for budget in (60.0, 130.0, 301.0):
        counts = matched_counts(pool, budget)
        assert np.ptp(counts) <= 1
        cost = spent[np.arange(300), counts - 1].mean()
        assert cost <= budget
        assert budget - cost < 2.0
    assert (matched_counts(pool, 1e9) == 10).all()
    flat = np.full((8, 4), 10)
    counts = matched_counts(flat, 25.0)
    assert counts.sum() == 20
    assert np.abs(np.cumsum(counts) - 2.5 * np.arange(1, 9)).max() <= 1  # spread evenly
    assert matched_counts(flat, 20.0).tolist() == [2] * 8  # what is just affordable is bought
    assert (matched_counts(pool, 1.0) == 1).all()


def test_pool_votes_count_tokens_and_merge_answers():
    pool = [
        [trace(["correct"], True, "1"), trace(["wrong"], False, "2", ids=(5, 6)), trace(["wrong"], False, "2", ids=(5, 6))],
        [trace(["correct"], True, "1", logprob=-0.1), trace(["wrong"], False, "2", ids=(7,), logprob=-2.0), trace(["wrong"], False, "2", ids=(8,), logprob=-2.0)],
    ]  # fmt: skip
    questions = [Question("a", "q", gold="1"), Question("b", "q", gold="1")]

    def vote(method, counts, gamma=1.0):
        return pool_votes(
            pool, np.array(counts), method, questions, lambda text: None, lambda a, b: a == b, gamma
        )

    correct, tokens = vote("majority", [3, 3])
    assert correct.tolist() == [0.0, 0.0]
    assert tokens.tolist() == [5.0, 3.0]
    assert vote("majority", [1, 1])[0].tolist() == [1.0, 1.0]
    # Duplicates count once: question a's wrong answer is one path of two tokens, less probable than the right one.
    assert vote("sequence", [3, 3])[0].tolist() == [1.0, 1.0]
    assert vote("confidence", [3, 3], gamma=10.0)[0].tolist() == [0.0, 1.0]


def test_steps_without_verdict_or_tokens_are_left_out():
    odd = dataclasses.replace(TRACES[0], steps=(dataclasses.replace(TRACES[0].steps[0], entropy=None),))
    tables = tabulate([odd, TRACES[3]], ["a", "b"])
    assert len(tables.right) == 2


def test_what_nobody_judged_counts_neither_way():
    found = values(tabulate(TRACES, IDS))
    unjudged = [trace(["unknown", "unknown"], True), trace([], False)]
    more = values(tabulate([*TRACES, *unjudged], [*IDS, "a", "b"]))
    for name in ("all_steps_right", "flawed_correct_rate", "first_error_accuracy"):
        assert more[name] == found[name], name
    ungraded = values(tabulate([*TRACES, trace(["correct"], None)], [*IDS, "a"]))
    assert ungraded["answer_accuracy"] == found["answer_accuracy"]
    assert ungraded["all_steps_right"] == 3 / 5
