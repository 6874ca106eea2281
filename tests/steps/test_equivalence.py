"""Answers compared: which are the same, in either order, and within the time that there is."""

import itertools
import multiprocessing
import re
import threading
import time

import pytest

from caspo_jax.steps import equivalent
from caspo_jax.steps.grading import Grader
from caspo_jax.steps.grading_worker import braced
from caspo_jax.steps.relations import relates_unknowns
from caspo_jax.steps.spelling import as_text, one_spelling


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
        *(
            ("proved", t, "string", True)
            for t in ('"proved"', "(proved)", "Proved!", r"\text{proved}", "*proved*.")
        ),
        (".5", "5", "string", False),
        ("?", "!", "string", False),
        ("6+9i", "6 + 9 i", "math", True),
        ("6+9i", r"6+9\,i", "math", True),
        ("6+9i", r"6+9\cdot i", "math", True),
        ("6+9i", "9+6 i", "math", False),
        (r"60^\circ, 120^\circ", "60°, 120°", "math", True),
        (r"\text{A,C,F}", "A, C, F", "math", True),
        (r"\text{A,C,F}", r"\text{A}, \text{C}, \text{F}", "math", True),
        (r"\text{A,C,F}", "A,C,E", "math", False),
        (r"\text{October 30}", "October 30", "math", True),
        (r"\text{October 30}", "October 31", "math", False),
        (r"\text{east}", r"\text{seat}", "math", False),
        ("a + b + c", "a+b+c", "math", True),
        ("a + b + c", "a + b + d", "math", False),
        ("x - c", "x-c", "math", True),
        (r"\frac{7}{5} + \frac{1}{5} i.", r"\frac{7}{5}+\frac{1}{5}i", "math", True),
        (r"\frac{1}{2004!}", r"\frac{2}{2004!}", "math", False),
        ("2^{-2000}", "2^{-1999}", "math", False),
        ("2^{-2000}", r"\frac{1}{2^{2000}}", "math", True),
        ("5", "5 + m", "math", False),
        ("2s", "2", "math", False),
        ("6m", "6", "math", False),
        ("2s", "2m", "math", False),
        ("6m", "6 m", "math", True),
        ("5 m", "5", "math", True),
        ("5", r"5 \text{ m}", "math", True),
        ("7", "007", "integer", True),
        ("7", "x", "integer", False),
        ("18", "18 euros", "math", True),
        ("18", "18 Dollars", "math", True),
        ("1/0", "1", "math", False),
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
        ("-1/2", "1/2", False),
        ("1000000", "1,000 000", False),
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
        ("0.0000672", "0.0000671", False),
        ("0.0000001", "0.0000002", False),
        ("0", "0.0000001", False),
        ("1.6 \\times 10^{-19}", "1.7\\times10^{-19}", False),
        ("1.6·10^{-19}", "1.7·10^{-19}", False),
        ("1.6·10^{100}", "1.7·10^{100}", False),
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


@pytest.mark.parametrize("kind", ["math", "string"])
@pytest.mark.parametrize("run", [" ", ".", "!", ",", r"\,", "+ ", "~", "\n "])
def test_degenerate_answers_are_compared_in_no_time(run, kind):
    started = time.perf_counter()
    assert not equivalent(f"1{run * 50_000}a", f"1{run * 50_000}b", kind)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("read", [as_text, one_spelling])
def test_blanks_without_end_are_read_once(read):
    started = time.perf_counter()
    for run in (" ", "~", "\r\n"):
        read(f"a{run * 20_000}1")
    assert time.perf_counter() - started < 3


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


def test_an_answer_without_end_is_not_waited_for_in_every_comparison():
    grader, endless = Grader(seconds=1.0), "9^{9^{9^{9^{9}}}}"
    try:
        assert grader.equivalent("2x", "x+x") is True
        for k in range(100):  # as a vote asks: against every other answer
            assert grader.equivalent(endless, f"{k}x") is False
            assert grader.equivalent(f"{k}x", f"{k}x+1") is False
            if k == 4:
                started = time.perf_counter()
        assert grader.equivalent("101x", endless) is False
        assert time.perf_counter() - started < 5
        assert grader.timeouts == 101
        assert grader.equivalent("7x", "6x+x") is True  # what it was held against is as good as before
    finally:
        grader.close()


def test_a_gold_answer_outlives_answers_without_end():
    grader = Grader(seconds=1.0)
    try:
        for k in range(5):
            assert grader.equivalent("2x", f"9^{{9^{{9^{{9^{{{k + 2}}}}}}}}}") is False
        assert grader.equivalent("2x", "x+x") is True
    finally:
        grader.close()


def test_what_meets_math_verify_s_own_limit_is_counted():
    grader = Grader(seconds=1.0)
    try:
        assert grader.equivalent("7", "(" * 900 + "1" + ")" * 900) is False
        assert grader.timeouts == 1
    finally:
        grader.close()


def _compared_in_a_fork(start: int) -> bool:
    return all(
        equivalent(f"{k}x", f"x+{k - 1}x") and not equivalent(f"{k}x", f"x+{k}x")
        for k in range(start, start + 20)
    )


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_forked_processes_have_helpers_of_their_own():
    assert equivalent("2x", "x+x")  # the parent's is there before the fork
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_compared_in_a_fork, [2, 40, 80, 120]).get(timeout=60) == [True] * 4
    assert equivalent("3x", "2x+x")


def test_an_interrupted_comparison_leaves_no_reply_behind(monkeypatch):
    grader = Grader(seconds=5.0)

    def interrupted(process, seconds):
        raise KeyboardInterrupt

    try:
        assert grader.equivalent("2x", "x+x") is True
        with monkeypatch.context() as patch:
            patch.setattr(grader, "_read", interrupted)
            with pytest.raises(KeyboardInterrupt):
                grader.equivalent("3x", "2x+x")
        assert grader.equivalent("3x", "x+x") is False
    finally:
        grader.close()


def test_a_dead_helper_is_replaced():
    grader = Grader(seconds=5.0)
    try:
        assert grader.equivalent("2x", "x+x") is True
        grader._process.kill()
        grader._process.wait()
        assert grader.equivalent("3x", "x+2x") is True  # it waited for work: no fault of these two
        assert grader.timeouts == 0
    finally:
        grader.close()


RELATIONS = (
    "x + y = 3",
    "xy = 12",
    "ab=1",
    "x + y + z = 0",
    r"\frac{x}{2}=3",
    "x^2 + y^2 = 4",
    "2x=5",
    r"3\cdot x = 12",
    r"\alpha + \beta = 90",
    r"\alpha x = 3",
    "x_1 x_2 = 4",
    "y - 3 = 2(x-1)",
    "2f(x) = 4",
    r"\sqrt{x} = 3",
)
NAMED = (
    "x = 3",
    "x_1 = 5",
    r"\lambda_{12} = 3",
    "f(x)=2x",
    r"f \left( x \right) = 3",
    "f^{-1}(x) = x",
    "P(X > 2) = 1/3",
    "P(X=2) = 1/3",
    "y = 2x+1",
    "AB = 5",
    "AB/BC = 2",
    r"\angle ABC = 30",
    r"m\angle ABC = 30",
    r"\overline{AB} = 5",
    "(x, y) = (1, 2)",
    "a:b = 2:3",
    "|z| = 5",
    r"\text{Area} = 5",
    "area = 5",
    "gcd(a, b) = 3",
    r"\log_2 x = 3",
    r"\frac{dy}{dx} = 2x",
    "dy/dx = 3",
    "2 + 3 = 5",
    r"x \le 3",
    r"x^2 \geq 3 = y",
    "5",
)


@pytest.mark.parametrize("gold", RELATIONS)
def test_the_right_side_of_an_equation_in_unknowns_is_not_the_equation(gold):
    right = gold.partition("=")[2].strip()
    assert relates_unknowns(gold)
    assert not equivalent(gold, right)
    assert equivalent(gold, f"${gold}$")


@pytest.mark.parametrize("gold", NAMED)
def test_a_name_before_an_equals_sign_may_be_left_out(gold):
    assert not relates_unknowns(gold)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("x = 3", "3"),
        ("f(x) = 2x", "2x"),
        ("y = 2x+1", "2x+1"),
        ("AB = 5", "5"),
        ("(x, y) = (1, 2)", "(1, 2)"),
        ("x_1 = 5", "5"),
        (r"\theta = 30", "30"),
    ],
)
def test_what_is_named_is_answered_without_its_name(gold, answer):
    assert equivalent(gold, answer)
