"""What contradicts a step: other answers, and what a judge says."""

import dataclasses

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import (
    AnswerEquivalence,
    ContradictionItem,
    LocalContradictionJudge,
    parse_contradiction,
)
from caspo_jax.evaluation.faithfulness.contradiction import last_value, load_contradiction_prompt
from caspo_jax.types import Trace


def test_answer_equivalence():
    item = ContradictionItem("q", "", "So x = 3/4.", "x is 0.75")
    assert AnswerEquivalence().judge([item]) == [False]
    assert AnswerEquivalence().judge([dataclasses.replace(item, continuation="x is 5")]) == [True]
    assert AnswerEquivalence().judge([dataclasses.replace(item, continuation="let us see")]) == [None]
    same = ContradictionItem("q", "", "Let me work out 12 * 3.", "Let me work out  12 * 3.")
    assert AnswerEquivalence().judge([same]) == [False]  # nothing to tell, and yet no contradiction
    assert last_value("Since 3 < 4, \\boxed{7} of 9") == "7"
    assert last_value("the total, 1,234.") == "1,234"
    assert last_value("none") is None
    assert last_value("a mass of 2.5kg") is None  # never 2
    assert last_value("about 1.5e3") is None
    assert last_value("2.50, or 5/2.") == "5/2"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"so $x = \frac{3}{4}$.", "3/4"),
        (r"so $x = -\dfrac{3}{4}$", "-3/4"),
        (r"that is 1\frac{1}{2} hours", "1 1/2"),
        (r"an angle of $45^\circ$", "45"),
        (r"= 3 \cdot 4 = 12", "12"),
        (r"it costs \(5\) dollars", "5"),
        (r"it is 15 \text{ cm}", "15"),
        ("**5** apples", "5"),
        ("x = -5", "-5"),
        ("* 5 apples\n- 6 pears", "6"),
        (r"so $y = \frac{3}{x}$", None),
        (r"so $y = \frac{x}{3}$", None),
        (r"so $y = 4\sqrt{2}$", None),
        (r"the area is $3\pi$", None),
        ("f is x^2", None),
        ("2 * 3", None),
        ("x = 7 - 5", None),
        ("x = 3 + y", None),
    ],
)
def test_an_operand_is_not_what_a_paragraph_comes_to(text, value):
    assert last_value(text) == value


def test_two_fractions_of_one_denominator_contradict():
    items = [
        ContradictionItem("", "", r"so $x = \frac{3}{4}$", said)
        for said in (r"$x = \frac{1}{4}$", "x = 0.75")
    ]
    assert AnswerEquivalence().judge(items) == [True, False]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("They differ.\nContradiction: yes", True),
        ("They differ. Contradiction: yes", True),
        ("No, they agree. **Contradiction:** no.\n\n", False),
        ("Yes, both say 5. Contradiction: no", False),
        ("Contradiction: no - because yes would mean two values", False),
        ("Contradiction: no (the same value)", False),
        ("Contradiction: no contradiction", False),
        ("Contradiction: yes\nContradiction: no", False),
        ("Contradiction: yes? Contradiction: no", False),
        ("Yes, it contradicts", True),
        ("**No**", False),
        ("no contradiction.", False),
        ("Answer: yes.", True),
        ("Final answer: **no**", False),
        ("Yes — the values differ", True),
        ("no - because yes would mean two values", None),  # either word may be the verdict
        ("Yes, both say 5, so no contradiction", None),
        ("Contradiction: yes and no", None),
        ("Contradiction: yes/no", None),
        ("No, they agree. Contradiction: perhaps", None),
        ("Contradiction: yes? They agree.\n</think>No", False),
        ("Contradiction: yes\n</think>", None),
        ("contradiction yes", None),
        ("The first says the answer: yes", None),
        ("nobody can say", None),
        ("no-one can say", None),
        ("Contradiction: yes\nor so it seems", None),
        ("", None),
        ("Contradiction:" + " " * 100_000 + "x", None),
    ],
)
def test_verdicts_are_read_from_the_last_line(reply, verdict):
    assert parse_contradiction(reply) is verdict


def test_a_local_judge(tmp_path):
    asked = []

    def generate(questions, n):
        assert n == 1
        asked.extend(questions)
        replies = [
            "They differ.\nContradiction: yes",
            "Contradiction: **no**",
            "Contradiction: perhaps",
            "Contradiction: yes",
        ]
        ends = ["eos", "eos", "eos", "length"]
        return [
            Trace(q.id, None, None, None, (1,), (1,), text, end)
            for q, text, end in zip(questions, replies, ends)
        ]

    items = [ContradictionItem("Q {step}", "before", f"step {k}", "other") for k in range(4)]
    judge = LocalContradictionJudge(generate)
    assert judge.judge([*items, items[0]]) == [True, False, None, None, True]
    assert len(asked) == 4
    assert "Q {step}" in asked[0].question
    assert "step 0" in asked[0].question
    assert judge.judge([]) == []
    file = tmp_path / "prompt.md"
    file.write_text("{question} {prefix} {step}")
    with pytest.raises(UserError, match="lacks"):
        load_contradiction_prompt(file)
