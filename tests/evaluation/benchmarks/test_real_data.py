"""Every row of the real files, where a copy of them is at hand (CASPO_JAX_DATA): the references are right, others are not."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from caspo_jax.evaluation.benchmarks import get_benchmark
from caspo_jax.evaluation.benchmarks.code import humaneval_program
from caspo_jax.steps.grading import Grader

pytestmark = pytest.mark.slow

DATA = Path(os.environ.get("CASPO_JAX_DATA") or Path(__file__).parents[4] / "shared" / "data")
WORKERS = 2


def loaded(name, file, **options):
    if not (DATA / file).is_file():
        pytest.skip(f"no {DATA / file}: set CASPO_JAX_DATA")
    benchmark = get_benchmark(name, **options)
    return benchmark, benchmark.load(DATA / file)


def in_parallel(function, items):
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(function, items))


@pytest.mark.parametrize(
    "name, file, count",
    [("math500", "math500.jsonl", 500), ("aime24", "aime24.jsonl", 30), ("gsm8k", "gsm8k_test.jsonl", 1319)],
)
def test_every_reference_solution_grades_as_right(name, file, count):
    benchmark, questions = loaded(name, file)
    assert len(questions) == count
    assert [q.id for q in questions if benchmark.grade(q.extra["solution"], q) is not True] == []


def test_every_olympiad_answer_grades_as_right():
    benchmark, questions = loaded("olympiadbench", "olympiadbench.jsonl")
    assert len(questions) == 675
    wrong = [q.id for q in questions if not benchmark.grade(f"Hence \\boxed{{{q.gold.strip('$')}}}.", q)]
    assert wrong == []


# Where math-verify itself, without our shortcut for equal texts, does not hold an answer equal to itself: prices, whose
# dollar sign `equivalent` takes off before it asks.
PRICES = {f"math500/test/{name}.json" for name in ("algebra/2626", "algebra/2780", "prealgebra/1203")}
NOT_EQUAL_TO_THEMSELVES = {"math500": PRICES, "olympiadbench": set(), "aime24": set()}


@pytest.mark.parametrize("name", NOT_EQUAL_TO_THEMSELVES)
def test_math_verify_reads_every_gold_answer(name):
    _, questions = loaded(name, f"{name}.jsonl")
    grader = Grader(seconds=10.0)
    try:
        failing = {q.id for q in questions if not grader.equivalent(q.gold, q.gold)}
    finally:
        grader.close()
    assert failing == NOT_EQUAL_TO_THEMSELVES[name]


@pytest.mark.parametrize("name", ["math500", "olympiadbench", "aime24"])
def test_another_question_s_answer_is_wrong(name):
    """A grader that says yes to everything would pass the tests above."""
    benchmark, questions = loaded(name, f"{name}.jsonl")
    questions = questions[:200]
    same = 0
    for question, other in itertools.pairwise(questions):
        same += benchmark.grade(f"\\boxed{{{other.gold}}}", question) is True
    assert same <= 0.04 * len(questions)  # small integers recur


def test_every_humaneval_solution_passes():
    benchmark, questions = loaded("humaneval", "humaneval.jsonl", allow_code_execution=True)
    assert len(questions) == 164

    def verdicts(question):
        whole = f"```python\n{question.question}{question.gold}\n```"
        return benchmark.grade(question.gold, question), benchmark.grade(whole, question)

    failing = [q.id for q, found in zip(questions, in_parallel(verdicts, questions)) if found != (True, True)]
    assert failing == []


def test_no_humaneval_test_passes_an_empty_function():
    benchmark, questions = loaded("humaneval", "humaneval.jsonl", allow_code_execution=True)
    found = in_parallel(
        lambda q: benchmark.sandbox.passes(humaneval_program("    return None", q)), questions
    )
    assert [q.id for q, passed in zip(questions, found) if passed] == []


def test_every_cruxeval_output_is_confirmed():
    benchmark, questions = loaded("cruxeval_input", "cruxeval.jsonl", allow_code_execution=True)
    assert len(questions) == 800
    found = in_parallel(lambda q: benchmark.grade(f"[ANSWER]f({q.gold})[/ANSWER]", q), questions)
    assert [q.id for q, right in zip(questions, found) if right is not True] == []


@pytest.mark.parametrize("name, part", [("cruxeval", "output"), ("cruxeval_input", "input")])
def test_every_cruxeval_assertion_is_taken_apart(name, part):
    benchmark, questions = loaded(name, "cruxeval.jsonl")
    text = "[ANSWER]assert f({input}) == {output}[/ANSWER]"
    found = [(q.extra[part], benchmark.extract(text.format(**q.extra))) for q in questions]
    assert [pair for pair in found if pair[0].strip() != (pair[1] or "")] == []


def test_every_cruxeval_output_equals_itself_and_not_the_next():
    benchmark, questions = loaded("cruxeval", "cruxeval.jsonl", allow_code_execution=True)
    grades = [benchmark.grade(f"[ANSWER]{q.gold}[/ANSWER]", q) for q in questions]
    assert [q.id for q, right in zip(questions, grades) if right is not True] == []
    others = [benchmark.grade(f"[ANSWER]{o.gold}[/ANSWER]", q) for q, o in itertools.pairwise(questions)]
    assert sum(map(bool, others)) <= 0.02 * len(questions)
