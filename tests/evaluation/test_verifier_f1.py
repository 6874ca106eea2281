"""A verifier on ProcessBench-format files."""

import dataclasses
import json

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.verifier_f1 import first_error, judge_verifier, load_processbench
from caspo_jax.steps import StatedEquations

ROWS = [
    {
        "id": "gsm8k-0",
        "generator": "self-written",
        "problem": "Two boxes of 3 pens and 4 pens. How many pens?",
        "steps": ["There are 3 + 4 = 7 pens.", "So the answer is 7."],
        "final_answer_correct": True,
        "label": -1,
    },
    {
        "id": "gsm8k-1",
        "generator": "self-written",
        "problem": "Five rows of 6 seats, 2 broken. How many work?",
        "steps": ["5 * 6 = 30 seats.", "30 - 2 = 27 work.", "The answer is 27."],
        "final_answer_correct": False,
        "label": 1,
    },
    {
        "id": "gsm8k-2",
        "generator": "self-written",
        "problem": "What is 8 less than 10?",
        "steps": ["I add them.", "8 + 10 = 18."],  # wrong at once, in words
        "final_answer_correct": False,
        "label": 0,
    },
    {
        "id": "gsm8k-3",
        "generator": "self-written",
        "problem": "Half of 9?",
        "steps": ["9 / 2 = 4.5.", "The answer is 4.5."],
        "final_answer_correct": True,
        "label": -1,
    },
]


@pytest.fixture
def solutions(tmp_path):
    path = tmp_path / "processbench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return load_processbench(path)


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Calls wrong what the labels call wrong, and keeps what it was asked."""

    asked: list
    wrong: frozenset
    name: str = "recorder"

    def verify(self, items):
        self.asked.extend(items)
        return ["wrong" if (i.trace_id, i.step_index) in self.wrong else "correct" for i in items]


def test_stated_equations(solutions):
    report = judge_verifier(StatedEquations(), solutions)
    assert report.labels == (-1, 1, 0, -1)
    assert report.found == (-1, 1, -1, -1)
    assert (report.score.error_accuracy, report.score.correct_accuracy) == (0.5, 1.0)
    assert report.score.f1 == pytest.approx(2 / 3)
    assert report.unknown == pytest.approx(4 / 9)
    assert report.interval.value == report.score.f1


def test_a_perfect_verifier_and_what_it_is_asked(solutions):
    asked = []
    wrong = frozenset({("gsm8k-1", 1), ("gsm8k-1", 2), ("gsm8k-2", 0)})  # a later error does not matter
    seen = []
    report = judge_verifier(
        Recorder(asked, wrong), solutions, batch_size=2, progress=lambda *done: seen.append(done)
    )
    assert report.score.f1 == 1.0
    assert seen[-1] == (9, 9)
    third = asked[4]
    assert third.question.question == ROWS[1]["problem"]
    assert third.prefix == "5 * 6 = 30 seats.\n\n30 - 2 = 27 work.\n\n"
    assert [item.is_last for item in asked] == [False, True, False, False, True, False, True, False, True]


def test_prefixes_are_no_copies(solutions):
    """Those of 2,000 solutions of 80 steps take 1.4 GB of text."""
    asked = []
    judge_verifier(Recorder(asked, frozenset()), solutions)
    wholes = {item.trace_id: vars(item)["prefix"].whole for item in asked}
    assert all(vars(item)["prefix"].whole is wholes[item.trace_id] for item in asked)
    for solution in solutions:
        prefixes = [item.prefix for item in asked if item.trace_id == solution.id]
        assert prefixes == ["".join(f"{s}\n\n" for s in solution.steps[:i]) for i in range(len(prefixes))]


def test_unknown_steps_count_as_right():
    assert first_error(["unknown", "correct", "wrong", "wrong"]) == 2
    assert first_error(["unknown", "correct"]) == -1
    assert first_error([]) == -1


def test_bad_files(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1] | {"label": 3}) + "\n")
    with pytest.raises(UserError, match=r"p\.jsonl:2: label 3 is no step of 3"):
        load_processbench(path)
    path.write_text("")
    with pytest.raises(UserError, match="no solution in it"):
        load_processbench(path)


@dataclasses.dataclass(frozen=True)
class Short:
    """Forgets the last step of every batch."""

    name: str = "short"

    def verify(self, items):
        return ["correct"] * (len(items) - 1)


def test_a_verifier_must_judge_every_step(solutions):
    with pytest.raises(UserError, match="verifier 'short' gave 2 verdicts for 3 steps"):
        judge_verifier(Short(), solutions, batch_size=3)
