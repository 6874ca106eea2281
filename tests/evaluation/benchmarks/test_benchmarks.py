"""Every benchmark over a few self-written items in the layout of the real set, from file to verdict."""

import dataclasses
import json
from pathlib import Path

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks import benchmark_names, embedded_benchmark, get_benchmark, register
from caspo_jax.tasks import TASKS, extract_answer

FIXTURES = Path(__file__).parent / "fixtures"
SETS = (
    "math500",
    "minerva_math",
    "olympiadbench",
    "amc23",
    "aime24",
    "aime25",
    "gsm8k",
    "humaneval",
    "cruxeval",
    "cruxeval_input",
    "livecodebench",
    "mmlu_pro_stem",
    "race",
    "strategyqa",
    "tablebench",
    "boardgameqa",
)
CODE = ("humaneval", "cruxeval", "cruxeval_input", "livecodebench")
SUM = "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))"
GAP = (
    "class Solution:\n    def largestGap(self, nums: List[int]) -> int:\n"
    "        return max((abs(a - b) for a, b in pairwise(nums)), default=0)"
)


@pytest.fixture(scope="module")
def benchmarks():
    return {name: get_benchmark(name, allow_code_execution=name in CODE) for name in SETS}


def right_output(name, question):
    """What a model that is right would write."""
    if name == "humaneval":
        return f"Here it is.\n```python\n{question.question}{question.gold}```\nDone."
    if name == "livecodebench":
        return f"```python\n{GAP if question.extra['starter_code'] else SUM}\n```"
    if name == "cruxeval_input":
        return f"Step by step.\n[ANSWER]f({question.gold})[/ANSWER]"
    if name == "cruxeval":
        return f"Step by step.\n[ANSWER]{question.gold}[/ANSWER]"
    if name == "tablebench":
        return f"Look at the rows.\nFinal Answer: {question.gold}"
    if name == "gsm8k":
        return f"{question.extra['solution']}"
    return f"First this, then that.\n\nSo it is \\boxed{{{question.gold}}}."


def wrong_output(name, question):
    """A well-formed output with another answer."""
    other = {
        "humaneval": "```python\n    return None\n```",
        "livecodebench": "```python\nclass Solution:\n    largestGap = lambda self, nums: -1\n```",
        "cruxeval": "[ANSWER]'none of it'[/ANSWER]",
        "cruxeval_input": "[ANSWER]f(1, 2, 3, 4)[/ANSWER]",
        "tablebench": "Final Answer: Xtown",
        "mmlu_pro_stem": f"\\boxed{{{'A' if question.gold != 'A' else 'B'}}}",
        "race": f"\\boxed{{{'A' if question.gold != 'A' else 'B'}}}",
        "strategyqa": f"\\boxed{{{'no' if question.gold == 'yes' else 'yes'}}}",
        "boardgameqa": f"\\boxed{{{'proved' if question.gold != 'proved' else 'unknown'}}}",
    }
    return other.get(name, "\\boxed{-987654321}")


def test_all_benchmarks_are_there():
    assert set(SETS) <= set(benchmark_names())


@pytest.mark.parametrize("name", SETS)
def test_from_file_to_verdict(benchmarks, name):
    benchmark = benchmarks[name]
    questions = benchmark.load(FIXTURES)
    assert len({q.id for q in questions}) == len(questions) >= 2
    for question in questions:
        assert question.id.startswith(f"{name}/")
        prompt = benchmark.prompt(question)
        assert benchmark.asked(question).question == prompt
        assert benchmark.asked(question).gold == question.gold
        assert (question.extra.get("code") or question.question).strip() in prompt
        right, wrong = right_output(name, question), wrong_output(name, question)
        for graded in (question, benchmark.asked(question)):  # a program has the latter at hand
            assert benchmark.grade(right, graded) is True, question.id
            assert benchmark.grade(wrong, graded) is False, question.id
        assert benchmark.grade("", question) is False
        answer = benchmark.extract(right_output(name, question))
        assert benchmark.equal(answer, answer)


@pytest.mark.parametrize("name", SETS)
def test_what_each_says_of_itself(name):
    benchmark = get_benchmark(name)
    source = benchmark.source
    assert source.dataset.count("/") == 1
    assert len(source.revision) == 40
    assert source.licence
    assert benchmark.runs_code == (name in CODE)
    assert benchmark.repeats > 1 or benchmark.size is None or benchmark.size > 100


@pytest.mark.parametrize("name", CODE)
def test_code_is_not_run_unasked(name):
    benchmark = get_benchmark(name)
    question = benchmark.load(FIXTURES, limit=1)[0]
    assert benchmark.prompt(question)
    with pytest.raises(UserError, match="--allow_code_execution"):
        benchmark.grade(right_output(name, question), question)


@pytest.mark.parametrize("name", SETS)
def test_a_row_of_another_layout_is_reported_with_file_line_and_field(tmp_path, name):
    file = FIXTURES / ("cruxeval.jsonl" if name == "cruxeval_input" else f"{name}.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[1])
    fields = {  # a field that this benchmark cannot do without
        "minerva_math": "answer",
        "olympiadbench": "final_answer",
        "humaneval": "entry_point",
        "cruxeval": "code",
        "cruxeval_input": "output",
        "livecodebench": "private_test_cases",
        "mmlu_pro_stem": "options",
        "race": "article",
        "boardgameqa": "label",
        "tablebench": "table",
    }
    field = fields.get(name, "answer")
    del row[field]
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([lines[0], json.dumps(row)]), encoding="utf-8")
    with pytest.raises(UserError) as error:
        get_benchmark(name).load(broken)
    assert f"{broken}:2: " in str(error.value)
    assert f"`{field}`" in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("answer", ["AB", "E", "1"])
def test_the_gold_letter_is_one_of_the_options(answer):
    row = {
        "question": "?",
        "options": ["x", "y", "z"],
        "answer": answer,
        "article": "A text.",
        "category": "math",
    }
    for name in ("mmlu_pro_stem", "race"):
        with pytest.raises(UserError, match=f"'{answer}', no letter of 3 options"):
            get_benchmark(name).read(row, "0")


def test_what_is_left_out():
    """MMLU-Pro's other subjects; TableBench's charts and prose."""
    assert [q.id for q in get_benchmark("mmlu_pro_stem").load(FIXTURES)] == [
        "mmlu_pro_stem/9001",
        "mmlu_pro_stem/9002",
    ]
    assert [q.id for q in get_benchmark("tablebench").load(FIXTURES)] == [
        f"tablebench/{n}" for n in (9001, 9002, 9003, 9006)
    ]


@pytest.mark.parametrize(
    "place, output, verdict",
    [
        (0, "Final Answer: the CSTADT.", True),
        (0, "Final Answer: Cstadt, Aburg", False),
        (1, "Final Answer: 12,698.333", True),  # rounded to the gold's places
        (1, "Final Answer: 12698.3", False),
        (2, "Final Answer: 12000, 5100", True),  # within ten per cent
        (2, "Final Answer: 11000, 5100", False),
        (3, "Final Answer: 26.5%", True),
        (3, "Final Answer: 0.265", True),
        (3, "Final Answer: 26.5", False),
        (0, "It is Cstadt", False),
    ],
)
def test_tablebench_scoring(place, output, verdict):
    benchmark = get_benchmark("tablebench")
    assert benchmark.grade(output, benchmark.load(FIXTURES)[place]) is verdict


@pytest.mark.parametrize(
    "output, answer",
    [
        ("\\boxed{disproved}", "disproved"),
        ("It is proved that...\nso the answer is: **unknown**", "unknown"),
        ("The statement cannot be shown.\nHence unknown.", "unknown"),
        ("It is neither proved nor disproved.", None),
        ("So the answer is proved?\n</think>\n\nThe statement is **disproved**.", "disproved"),
        ("So the answer is proved.\n</think>\n\nThat is all.", "proved"),
        ("unproved", None),
        ("", None),
    ],
)
def test_boardgameqa_answers(output, answer):
    assert get_benchmark("boardgameqa").extract(output) == answer


def test_a_tolerance_that_is_no_number_is_refused_when_it_is_read(tmp_path):
    row = {"id": 1, "question": "q", "final_answer": ["1.5"], "error": ["1e-1"]}
    (tmp_path / "olympiadbench.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"olympiadbench.jsonl:1: field `error` must be text"):
        get_benchmark("olympiadbench").load(tmp_path)


def test_the_tolerance_of_olympiadbench():
    benchmark = get_benchmark("olympiadbench")
    tolerant = benchmark.load(FIXTURES)[1]
    assert tolerant.question.startswith("A disk of radius 1")  # the context comes first
    assert benchmark.score("12.38", tolerant) is True
    assert benchmark.score("12.25\\%", tolerant) is True
    assert benchmark.score("12.5", tolerant) is False
    assert benchmark.score("about twelve", tolerant) is False


def test_the_order_of_several_answers_does_not_matter_but_the_answers_do():
    benchmark = get_benchmark("olympiadbench")
    pairs = benchmark.load(FIXTURES)[2]
    assert benchmark.score("(2,1), (1,2)", pairs) is True
    assert benchmark.score("(1,2)", pairs) is False


@pytest.mark.parametrize("name", TASKS)
def test_an_embedded_task_as_benchmark(name):
    benchmark = embedded_benchmark(TASKS[name], extract_answer, seed=3, size=7)
    questions = benchmark.load(limit=5)
    assert questions == TASKS[name].questions("test", 5, 3)
    assert benchmark.load() == TASKS[name].questions("test", 7, 3)
    for question in questions:
        assert benchmark.prompt(question) == question.question
        assert benchmark.grade(f"some step\n\nanswer: {question.gold}", question) is True
        assert benchmark.grade(f"answer: {int(question.gold) + 1}", question) is False
    for limit in (None, 5):
        with pytest.raises(UserError, match="takes no file"):
            benchmark.load(FIXTURES, limit)


def test_a_name_is_not_taken_twice():
    with pytest.raises(UserError, match="'math500' is there already"):
        register(dataclasses.replace(get_benchmark("race"), name="math500"))


def test_an_unknown_name():
    with pytest.raises(UserError, match=r"unknown benchmark 'math'.*math500"):
        get_benchmark("math")


def test_a_benchmark_without_questions_is_refused_by_name():
    nothing = dataclasses.replace(get_benchmark("gsm8k"), name="mine", source=None)
    with pytest.raises(UserError, match="benchmark 'mine' has no source"):
        nothing.load()
