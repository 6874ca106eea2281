"""Answers: reading and comparing."""

import itertools
import re
import threading
import time

import pytest

from caspo_jax.errors import UserError
from caspo_jax.steps import equivalent, extract_answer, last_boxed
from caspo_jax.steps.grading import Grader
from caspo_jax.steps.grading_worker import braced


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so \boxed{1} no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed 7$", "7"),
        (r"\fbox{4} and later \framebox{5}", "5"),
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
        ("Final Answer: The final answer is $12$. I hope it is correct.", "12"),
        ("work\n#### 1,200", "1,200"),
        ("so\n\n# Answer\n\n4", "4"),  # as PRM800K ends
        ("so\n**Final Answer**\n$x = 3$", "x = 3"),
        ("so\n#### Final Answer\n42", "42"),
        ("# Answer key\n5 and so on", None),
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
        ("string", "Answer: proved", "proved"),
    ],
)
def test_other_kinds(kind, text, answer):
    assert extract_answer(text, kind) == answer


def test_last_boxed_without_one():
    assert last_boxed("no box") is None


@pytest.mark.parametrize(
    "gold, answer, kind, same",
    [
        ("18", "18.0", "math", True),
        ("1,000", "1000", "math", True),
        ("3/4", "0.75", "math", True),
        ("18", "19", "math", False),
        (r"\frac{1}{2}", "0.5", "math", True),
        (r"(3,\frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)", "math", True),
        ("x^2+1", "1+x^2", "math", True),
        ("x^2+1", "x^2-1", "math", False),
        ("(1,2)", "(2,1)", "math", False),
        (r"\$32,\!348", "32348", "math", True),
        (r"15\mbox{ cm}^2", "15", "math", True),
        ("073", r"\textbf{(73)}", "math", True),
        ("32349", r"32,\! 349", "math", True),
        ("32349", "32, 349", "math", False),  # a list
        ("32, 349", "349, 32", "math", True),
        (r"\frac{1}{12}", "0.0833333333", "math", True),  # six places
        (r"\frac{1}{12}", "0.0833", "math", False),
        ("1/3", "2/6", "math", True),
        ("1/3", "1/4", "math", False),
        ("$1$ and $2$ and $3$", "1,2,3", "math", True),
        ("3", "Jane started 3 hours ago", "math", True),
        ("4", "Jane started 3 hours ago", "math", False),
        (r"\frac{270}{7}\text{ degrees}", r"\frac{270}{7}", "math", True),
        (r"\text{odd}", r"\text{even}", "math", False),
        (r"-\frac{1}{2}", "-0.5", "math", True),
        ("C", "(C)", "letter", True),
        ("C", "D", "letter", False),
        ("E", "E. Vitamin C", "letter", True),
        ("E", r"\text{(E) Vitamin C}", "letter", True),
        ("E", "**E.** Vitamin C", "letter", True),
        ("E", "option E: Vitamin C", "letter", True),
        ("A", "A) Hepatitis B", "letter", True),
        ("B", r"\(B\), since A is false", "letter", True),
        ("yes", "True", "yes_no", True),
        ("no", "yes", "yes_no", False),
        ("no", "No, that is not true.", "yes_no", True),
        ("no", "True or false: false", "yes_no", True),
        ("Proved", " proved.", "string", True),
        ("proved", "disproved", "string", False),
        ("7", "007", "integer", True),
        ("7", "x", "integer", False),
    ],
)
def test_equivalence(gold, answer, kind, same):
    assert equivalent(gold, answer, kind) is same


@pytest.mark.parametrize(
    "one, other, same",
    [
        (".5", "0.5", True),
        (".5", "5", False),
        ("$.5$", "5.", False),
        ("5.", "5", True),
        ("3/2", r"1\frac{1}{2}", True),
        ("3/2", r"1 \dfrac{1}{2}", True),
        ("1.5", "1 1/2", True),
        (r"-\frac{3}{2}", r"-1\frac{1}{2}", True),
        (r"-\frac{1}{2}", r"-1\frac{1}{2}", False),
        ("11/2", r"1\frac{1}{2}", False),
        (r"3\frac18", r"3\frac{1}{8}", True),
        (r"\frac{1}{2}3", "1/23", False),
        ("23", "2 3", False),
        ("10", "1 0", False),
        ("10080", "10 080", True),
        ("10080", r"10\,080", True),
        ("10080", "10{,}080", True),
        ("0,111", "0.111", True),  # no thousands
        ("1000000", r"1\,000\,000.0", True),
        ("18", "18 dollars", True),
        ("18.50", r"\$18.50 dollars.", True),
        ("52_8", "52_{8}", True),
        ("52_8", "52_3", False),
        ("52_8", "53_8", False),
        ("52_8", "-52_8", False),
        ("0.0011_{2}", "0.00110_2", True),
        ("152A_{11}", "152a_{11}", True),
        ("52_8", "52", True),
        ("52_8", "x = 52_{3}", False),
        ("52_8", "x = 52_{8}", True),
        ("12_8, 13_8", "12_3, 13_3", False),
        ("12_8, 13_8", r"13_{8} \text{ and } 12_{8}", True),
        ("(12_8, 13_8)", "(12_8, 13_9)", False),
        ("(12_8, 13_9)", "(12_9, 13_8)", False),
        ("12_8, 13_8", "12_8", False),
        ("12_8, 13_8", "12, 13", True),
        (r"2007 + \frac\pi 2", r"2008 + \frac\pi 2", False),
        (r"2007 + \frac\pi 2", r"2007 + \frac{\pi}{2}", True),
        ("0.0000672", "6.72 \\times 10^{-5}", True),
        ("0.0000672", "0.0000668", False),
        ("0.0000001", "0.0000002", False),
        ("0", "0.0000001", False),
        ("1.6 \\times 10^{-19}", "1.7\\times10^{-19}", False),
        ("1.6 \\times 10^{-19}", "1.6 \\cdot 10^{-19}", True),
        (r"\varnothing", r"\emptyset", True),
        ("58,500", r"\(58,500\)", True),
        (r"864 \mbox{ inches}^2", r"\(864 \mbox{ inches}^2\)", True),
        (r"(0,9) \cup (9,36)", "\\[\n(0,9) \\cup (9,36)\n\\]", True),
        ("4.5e33", "4.5 \\times 10^{33}", True),
        ("4.5e33", "4.5\\times10^{33}\\text{ erg/s}", True),
        ("2.45e6", "2450000", True),
        (r"\frac{1}{2^{100}}", r"\frac{1}{2^{99}}", False),
        (r"\frac{1}{10^{8}}", "10^{-8}", True),
        ("0.083333", "0.0833333", True),
        ("0.001235", "0.0012346", True),
        ("1/3", "0.333333", True),
        ("1/3", "0.333", False),
    ],
)
def test_plain_numbers_in_either_order(one, other, same):
    assert equivalent(one, other) is same
    assert equivalent(other, one) is same


# Those of one line are equivalent, those of two lines are not.
TYPICAL = (
    ("3", "3.0", r"\frac{6}{2}", "x = 3"),
    ("0.5", r"\frac{1}{2}", r"50\%", "1/2"),
    ("1 < x < 2", "(1, 2)", r"x \in (1, 2)"),
    (r"1 \le x \le 2", "[1, 2]"),
    ("x > 3", r"(3, \infty)", "3 < x"),
    (r"x \le 3", r"(-\infty, 3]"),
    (r"\{4, 5\}", "5, 4"),
    ("x^2 + 1", "1 + x^2"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"30^\circ", "30"),
    ("5_8", "5_{8}"),
    (r"\text{odd}", "odd"),
)


def test_the_order_of_two_answers_does_not_matter():
    for line in TYPICAL:
        for a, b in itertools.combinations(line, 2):
            assert equivalent(a, b), (a, b)
            assert equivalent(b, a), (b, a)
    for one, other in itertools.combinations(TYPICAL, 2):
        for a, b in ((one[0], other[-1]), (one[-1], other[0])):
            assert not equivalent(a, b), (a, b)
            assert not equivalent(b, a), (b, a)


def test_an_inequality_that_is_not_solved_is_no_answer():
    assert equivalent("(-2, 2)", "-2 < x < 2")
    assert not equivalent("(-2, 2)", "x^2 < 4")


def test_bounds_are_no_points():
    for a, b in itertools.permutations(("1 < x < 2", r"\{1, 2\}")):
        assert not equivalent(a, b)


@pytest.mark.parametrize("above", ["1", "x", "{20i}", r"\pi", r"\sqrt{2}", "{a^{2}}"])
@pytest.mark.parametrize("below", ["2", "w", "{12}", r"\pi", r"\sqrt\pi", "{b_{1}}"])
def test_arguments_without_braces(above, below):
    def braces(text):
        return text if text.startswith("{") else f"{{{text}}}"

    whole = rf"\frac{braces(above)}{braces(below)}".replace(r"\sqrt\pi", r"\sqrt{\pi}")
    found = braced(rf"\frac {above} {below}").replace(" ", "")
    assert re.sub(r"{(\d)}", r"\1", found) == re.sub(r"{(\d)}", r"\1", whole)  # digits need none
    assert braced(whole) == whole


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


def test_comparison_off_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(equivalent(r"\sqrt{8}", r"2\sqrt{2}")))
    thread.start()
    thread.join()
    assert found == [True]


def test_the_time_limit_holds_and_the_grader_goes_on():
    grader = Grader(seconds=1.0)
    try:
        assert grader.equivalent("7", "9^{9^{9^{9^{9}}}}") is False
        assert grader.equivalent("2x", "x+x") is True
        assert grader.equivalent("1" * 3000, "1" * 3000 + "0") is False
    finally:
        grader.close()


def test_a_dead_helper_is_replaced():
    grader = Grader(seconds=5.0)
    try:
        assert grader.equivalent("2x", "x+x") is True
        grader._process.kill()
        grader._process.wait()
        grader.equivalent("3x", "x+2x")
        assert grader.equivalent("4x", "x+3x") is True
    finally:
        grader.close()


def test_unknown_kind():
    with pytest.raises(UserError, match="answer kind 'number' is none of math"):
        extract_answer("1", "number")
