"""Answers read out of outputs."""

import time

import pytest

from caspo_jax.errors import UserError
from caspo_jax.steps import equivalent, extract_answer, last_boxed
from caspo_jax.steps.answers import is_right
from caspo_jax.steps.marked import after_thought


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so \boxed{1} no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed 7$", "7"),
        (r"\fbox{4} and later \framebox{5}", "5"),
        (r"\fboxed{3}", "3"),
        (r"\boxed 3 and \boxed 4", "4"),
        (r"\boxed{1}; \boxed{2}", "1, 2"),
        (r"\boxed{1} or \boxed{2}", "1, 2"),
        (r"\boxed{1}\boxed{2}", "1, 2"),
        (r"so $x = \boxed{2}$ or $x = \boxed{-3}$.", "-3"),  # a word or a sign between: two statements
        (r"so \boxed{2} and \boxed{3}.", "2, 3"),
        ("\\[\\boxed{2} \\quad \\text{and} \\quad\n\\boxed{3}\\]", "2, 3"),
        (r"$\boxed{5}$, $\boxed{5}$", "5"),
        ("I shall put it within \\boxed{}.\nThe answer is 5.", "5"),  # what was asked, said once more
        ("\\boxed{5}\n\nThe answer is within \\boxed{}, as asked.", "5"),
        (r"\boxed{2}, \boxed{}", "2"),
        (r"The answer is $\boxed{}$.", None),
        ("\\boxed{1}\n\nso\n\n\\boxed{2}", "2"),
        ("\\boxed{1},\n\n\\boxed{2}", "2"),
        (r"\boxed{\boxed{5}}", "5"),  # one answer
        (r"\boxed{\frac{\boxed{1}}{2}}, \boxed{3}", r"\frac{1}{2}, 3"),
        (r"<think>Is it \boxed{3}?</think> The answer is 4.", "4"),  # said after the thought
        (r"<think>So \boxed{3}.</think> Done.", "3"),
        ("<think>The answer is 3.</think> Done.", "3"),
        (r"<think>2?</think> Hm, \boxed{3}. </think> The answer is 4.", "4"),  # after the last thought
        ("Final Answer: The final answer is $12$. I hope it is correct.", "12"),
        ("work\n#### 1,200", "1,200"),
        ("so\n\n# Answer\n\n4", "4"),  # as PRM800K ends
        ("so\n**Final Answer**\n$x = 3$", "x = 3"),
        ("so\n#### Final Answer\n42", "42"),
        ("# Answer key\n5 and so on", None),
        ("### 5", None),  # a heading
        ("Answer: the answer is: Answer: 6", "6"),
        ("Answer: 5\nAnswer: **", "5"),
        ("The answer is 1, 2, 3...", "1, 2, 3..."),
        ("The answer is \\(", None),  # cut off
        (r"The answer is \[5\].", "5"),
        ("Answer: 5\nFinal Answer: $x + 1$.", "x + 1"),
        ("**Answer:** 12", "12"),
        ("The answer is **no solution**.", "no solution"),
        ("The answer is *12*.", "12"),
        ("The answer is **$x = 5$**.", "x = 5"),
        (r"The answer is \(3\).", "3"),
        ("Answer: 1\nlater #### 2", "2"),
        ("The answer is:\n\\[\n5\n\\]", "5"),
        ("**Final Answer:**\n\n$$\n5\n$$", "5"),
        ("Answer: $$\nx = 5.\n$$. I hope it is correct.", "x = 5"),
        ("The answer is 5, since\n\\[ x = 4 + 1 \\]", "5, since"),
        ("The answer is:\n\\[\n5", None),  # cut off
        ("nothing", None),
        ("Answer:   ", None),
    ],
)
def test_math_answers(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "kind, text, answer",
    [
        ("letter", r"\boxed{\text{C}}", "C"),
        ("letter", "Answer: (b)", "B"),
        ("letter", "A careful look shows I was wrong.\nThe answer is D because of it.", "D"),
        ("letter", "The answer is A.", "A"),
        ("letter", "no idea", None),
        ("letter", "I think so", None),
        ("letter", "I is the right one", "I"),
        ("letter", "Answer: E. Vitamin C", "E"),
        ("letter", "The answer is C, not A.", "C"),
        ("letter", "The answer is (C) and not (A).", "C"),
        ("letter", "The answer is (B), since (A) and (D) break the rule.", "B"),
        ("letter", "Answer: **B** because it is neither A nor D", "B"),
        ("letter", "(B) is false, so it is (C).", "C"),  # nothing is marked
        ("letter", "Cells need ATP, so option B is correct.", "B"),
        ("letter", "A pear floats.", None),
        ("letter", "A is right.", "A"),
        ("letter", "The answer is A but barely.", "A"),
        ("letter", "I'm done.", None),
        ("letter", "Is the answer A? No.\n</think>\n\nThe right option is **(B)**.", "B"),
        ("letter", "The answer is C.\n</think>\n\nI hope that helps.", "C"),
        ("yes_no", "Maybe the answer is no.\n</think>\n\nAll in all: **Yes**.", "yes"),
        ("integer", "Perhaps \\boxed{32}.\n</think>\n\nThat makes 36 loaves.", "36"),
        ("yes_no", "Answer: Yes, it is", "yes"),
        ("yes_no", "Could be yes.\nSo: no.", "no"),
        ("yes_no", "Answer: True", "yes"),
        ("yes_no", "nobody knows", None),
        ("yes_no", "Answer: that is not true", "no"),
        ("yes_no", "So the claim isn't false.", "yes"),
        ("yes_no", "Answer: No, that is not true.", "no"),
        ("integer", "so we get 12\n#### -1,234", "-1234"),
        ("integer", "which makes 7 dollars.", "7"),
        ("integer", "Answer: 3.0", "3"),
        ("integer", "Answer: 3.5", None),
        ("integer", "The answer is 18, as required.", "18"),
        ("integer", "1,234, I think", "1234"),
        ("integer", "Answer: 12,34", None),
        ("integer", "The answer is 5/2", None),
        ("integer", "The answer is 3.5cm", None),
        ("integer", "The answer is 1,234kg", None),
        ("integer", "The answer is 1.2e3", "1200"),
        ("integer", "The answer is 12/4.", "3"),
        ("integer", "Answer: 3 1/2", None),
        ("integer", r"\boxed{\frac{1}{2}}", None),
        ("integer", r"\boxed{5 \times 10^3}", "5000"),
        ("integer", "Answer: 2^{10}", None),
        ("integer", "Answer: 12 cm^2", "12"),
        ("integer", r"\boxed{12\text{ cm}^2}", "12"),
        ("integer", r"\boxed{90^\circ}", "90"),
        ("integer", r"\boxed{90^{\degree}}", "90"),
        ("integer", r"\boxed{25^{\circ}C}", "25"),
        ("integer", "It is 25°C.", "25"),
        ("integer", "**7**", "7"),
        ("integer", r"\boxed{10\,080}", "10080"),
        ("integer", r"\boxed{32,\!348}", "32348"),
        ("integer", r"\boxed{10{,}080 \text{ cm}}", "10080"),
        ("integer", r"\boxed{5 \qquad \text{m}}", "5"),
        ("integer", r"Answer: \$1,234 in all", "1234"),
        ("integer", "The answer is −7 dollars.", "-7"),
        ("integer", "So it is -7 dollars.", "-7"),
        ("integer", "Answer: version x.5", None),
        ("integer", "Answer: x2 3", None),
        ("integer", "Answer: 2:3", None),
        ("integer", "Answer: a mod 7", None),
        ("integer", "So a -1.", None),
        ("integer", "So a −1.", None),
        ("integer", "Answer: 1/0", None),
        ("integer", r"\boxed{x – 3}", None),
        ("integer", r"\boxed{\top 5}", None),
        ("integer", r"\boxed{\frac{a} {2}}", None),
        ("integer", "Answer: 7 - the smallest", "7"),
        ("integer", "Answer: 7 – the smallest", "7"),
        ("integer", "Answer: in all: 7!", "7"),
        ("integer", "It is (7).", "7"),
        *(
            ("integer", rf"So x \{led} {n}", n)
            for led in ("approx", "to", "implies", "Rightarrow")
            for n in ("3", "-3")
        ),
        ("integer", r"\boxed{n+1}", None),
        ("integer", r"\boxed{n - 1}", None),
        ("integer", r"\boxed{10 - 3}", None),
        ("integer", r"\boxed{10!}", None),
        ("integer", r"\boxed{\binom{10}{3}}", None),
        ("integer", r"\boxed{f(7)}", None),
        ("integer", r"\boxed{3\pi}", None),
        ("integer", r"\boxed{3(x+1)}", None),
        ("integer", r"\boxed{x > 3}", None),
        ("integer", r"\boxed{5 \pmod 7}", None),
        ("integer", r"\boxed{1, 2, 3}", None),
        ("integer", r"\boxed{1 \text{ and } 2}", None),
        ("integer", r"\boxed{2 + 3 = 5}", "5"),
        ("integer", r"\boxed{\frac{16}{2} = 8}", "8"),
        ("integer", r"\boxed{x = -7}", "-7"),
        ("integer", r"\boxed{\text{The answer is 7}}", "7"),
        ("integer", "That makes 7!", "7"),
        ("integer", "The answer is (7).", "7"),
        ("integer", "Answer: 7 (seven)", "7"),
        ("integer", "3 apples and 4 pears", "4"),
        ("string", "Answer: proved", "proved"),
    ],
)
def test_other_kinds(kind, text, answer):
    assert extract_answer(text, kind) == answer


def test_what_is_said_is_said_after_the_last_thought():
    assert after_thought("a</think>b</think>c") == "c"
    assert after_thought("a") == "a"
    assert after_thought("<think>a</think> \n") == "<think>a</think> \n"  # nothing: the whole text


def test_last_boxed_without_one():
    assert last_boxed("no box") is None


@pytest.mark.parametrize("digits", ["3" * 6000, "0." + "3" * 6000, "1_" + "3" * 6000, "5/" + "3" * 6000])
def test_a_number_without_end_is_no_answer(digits):
    assert extract_answer(f"The answer is {digits}", "integer") is None
    assert not equivalent("1/3", digits)
    assert not equivalent("5_3", digits)
    assert not equivalent("3", digits, "integer")


@pytest.mark.parametrize(
    "text",
    ["\\boxed{" * 3000 + "1" + "}" * 3000, "#" * 20000, "answer is" + " " * 20000, "# answer" + " " * 20000],
    ids=["boxes", "hashes", "blanks", "heading"],
)
def test_degenerate_text_is_read_in_no_time(text):
    start = time.monotonic()
    assert extract_answer(text) in ("1", None)
    assert time.monotonic() - start < 1.0


@pytest.mark.parametrize("kind", ["math", "integer"])
@pytest.mark.parametrize(
    "text",
    [
        "Answer: " + "$" * 100_000 + "x",
        "Answer: 5" + "*" * 100_000 + " x",
        "1,234" + ",111" * 25_000 + "x",
        "#### " * 40_000,
        "answer is " * 40_000,
        "answer: \\[\n" * 10_000,
        "answer: \\[ " * 18_000 + "\n\\]",
        "( " * 10_000 + "5" + " )" * 10_000,
    ],
    ids=["dollars", "stars", "groups", "markers", "phrases", "open displays", "nested displays", "brackets"],
)
def test_the_time_of_reading_grows_with_the_length_alone(kind, text):
    start = time.monotonic()
    extract_answer(text, kind)
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    "text, answer",
    [
        ("Answer: $$", None),
        ("Answer: $$ .", None),
        ("Answer: $5$.", "5"),
        ("Answer: **5**", "5"),
        ("The answer is 4, no, the answer is 5", "5"),
        ("Answer: \\[\nx = 1\n\\] or so\nmore", "\\[\nx = 1\n\\] or so"),
        ("Answer: $$\n7\n$$\nmore", "7"),
        ("Answer: \\[ 5", "\\[ 5"),  # never closed: the line alone
        ("Answer: \\[ answer: \\[\n5\n\\] or so\nmore", "\\[\n5\n\\] or so"),
        ("Answer: $$ answer: \\[ 5 \\] or\nso $$", "\\[ 5 \\] or"),  # the inner block ends first
    ],
)
def test_what_follows_a_marker(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("run", ["-", "$$", "(", " ", "option ", "A ", "} ", "..."])
def test_degenerate_letters_are_read_in_no_time(run):
    start = time.monotonic()
    for text in (run * (100_000 // len(run)), "1" + run * (100_000 // len(run)) + "x"):
        extract_answer(f"\\boxed{{{text}}}", "letter")
        equivalent("A", text, "letter")
    assert time.monotonic() - start < 3.0


def test_unknown_kind():
    with pytest.raises(UserError, match="unknown answer kind 'number': choose from math"):
        extract_answer("1", "number")


@pytest.mark.parametrize("kind", ["letter", "yes_no"])
def test_two_texts_without_an_answer_are_not_equal(kind):
    assert not equivalent("nothing here", "nothing here", kind)
    assert not equivalent("none", "neither", kind)


def test_no_answer_is_neither_right_nor_wrong():
    assert is_right("5", "who knows", "math") is None
    assert is_right("5", r"\boxed{5}", "math") is True
    assert is_right(
        "5", "x", "math", extract=lambda text: text, equal=lambda gold, answer: (gold, answer) == ("5", "x")
    )
