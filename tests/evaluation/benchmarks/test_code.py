"""HumanEval's programs, CRUXEval's values, LiveCodeBench's tests."""

import base64
import dataclasses
import json
import pickle
import textwrap
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks import get_benchmark
from caspo_jax.evaluation.benchmarks.livecodebench import same_output

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def loaded():
    benchmarks = {
        name: get_benchmark(name, allow_code_execution=True)
        for name in ("humaneval", "cruxeval", "cruxeval_input", "livecodebench")
    }
    return {name: (benchmark, benchmark.load(FIXTURES)) for name, benchmark in benchmarks.items()}


SKETCH = "```python\ndef total_of_even(numbers):\n    return 0\n```"
RIGHT = "```python\ndef total_of_even(numbers):\n    return sum(n for n in numbers if not n % 2)\n\n```"


@pytest.mark.parametrize(
    "output, verdict",
    [
        (
            "    return sum(n for n in numbers if not n % 2)\n\nprint(total_of_even([2]))",
            True,
        ),  # a completion
        ("\n   \n    return sum(n for n in numbers if not n % 2)", True),  # blank lines first
        ("```python\nreturn sum(n for n in numbers if not n % 2)\n```", True),  # its indentation lost
        ("```python\ndef total_of_even(numbers: List[int]) -> int:\n    return sum(numbers[1:])\n```", True),
        (f"{RIGHT}\n\n```python\nprint(total_of_even([1, 2]))\n```\nwhich prints\n```\n2\n```", True),
        (f"{RIGHT}\n\n```python\ndef test_it():\n    assert total_of_even([2]) == 3\n\ntest_it()\n```", True),
        (f"So:\n\n{RIGHT[10:-3]}It adds up what is even.", True),  # no fence
        (f"1. So:\n{textwrap.indent(RIGHT, '   ')}", True),
        (RIGHT[:-3] + "if __name__ == '__main__':\n    import unittest\n    unittest.main()\n```", True),
        (RIGHT[:-3] + "if __name__ == '__main__':\n    print(total_of_even([int(input())]))\n```", True),
        (RIGHT[:-3] + "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'typing.Any'\n```", True),
        (f"First:\n\n{SKETCH}\n\nNo.\n</think>\n\n{RIGHT[10:-3]}", True),  # a draft in a thought
        (f"Maybe\n\n```python\ndef total_of_even(\n</think>\n\nSo:\n\n{RIGHT}", True),  # a fence left open
        (f"{RIGHT}\n</think>\n\n{SKETCH.replace('0', '0 +')}", False),
        (f"{RIGHT}\n</think>\n\n", True),  # cut before it was said
        ("```python\ndef total_of_even(numbers):\n    return sum(numbers)\n```", False),
        ("```python\ndef something_else(numbers):\n    return 0\n```", False),
        ("```python\ndef total_of_even(numbers):\n    raise SystemExit(0)\n```", False),
        ("```python\ndef total_of_even(numbers):\n    while True: pass\n```", False),
    ],
)
def test_humaneval_outputs(loaded, output, verdict):
    benchmark, questions = loaded["humaneval"]
    quick = dataclasses.replace(benchmark.sandbox.limits, wall_seconds=3.0, cpu_seconds=1)
    benchmark.sandbox.limits, before = quick, benchmark.sandbox.limits
    try:
        question = questions[0]
        if "sum(numbers[1:])" in output:  # right on another test only
            question = dataclasses.replace(
                question,
                extra=dict(question.extra)
                | {"test": "def check(candidate):\n    assert candidate([1, 2, 4]) == 6"},
            )
        assert benchmark.grade(output, question) is verdict
    finally:
        benchmark.sandbox.limits = before


def test_helpers_of_the_prompt_stay_with_a_new_function(loaded):
    benchmark, questions = loaded["humaneval"]
    assert benchmark.grade(
        "```python\ndef unshift(text):\n    return text[-1:] + text[:-1]\n```", questions[1]
    )


@pytest.mark.parametrize(
    "number, output, verdict",
    [
        (0, "[ANSWER]assert f(['an', 'owl', 'sings']) == ['OWL', 'SINGS'][/ANSWER]", True),
        (0, "[ANSWER]\n```python\n['OWL', 'SINGS']\n```\n[/ANSWER]", True),
        (0, "[ANSWER]wrong[/ANSWER] no: [ANSWER]['OWL', \"SINGS\"][/ANSWER]", True),
        (0, "Answer: ['OWL', 'SINGS']", True),
        (0, "It returns $\\boxed{\\text{['OWL', 'SINGS']}}$.", True),
        (0, "[ANSWER]['OWL', 'SINGS'][ANSWER]\n", True),
        (0, "I put it in [ANSWER] tags: [ANSWER]['OWL', 'SINGS'][/ANSWER]", True),
        (0, "[ANSWER]['OWL'][/ANSWER]?\n</think>\n\nAnswer: ['OWL', 'SINGS']", True),
        (0, "[ANSWER]['OWL', 'SINGS'][/ANSWER]\n</think>\n\nIt returns that.", True),
        (0, "[ANSWER][w.upper() for w in ('owl', 'sings')][/ANSWER]", True),  # evaluated in the sandbox
        (0, "[ANSWER]f(['an', 'owl', 'sings'])[/ANSWER]", False),  # f is not there
        (0, "[ANSWER]1) or (True[/ANSWER]", False),
        (0, "[ANSWER][w.upper() for w in ('owl', 'sings')]  # both[/ANSWER]", True),
        (0, "[ANSWER]__import__('os')._exit(0)[/ANSWER]", False),
        (1, "[ANSWER]{3: 9, 1: 1}[/ANSWER]", True),
        (2, "[ANSWER]set()[/ANSWER]", True),
        (2, "[ANSWER]{}[/ANSWER]", False),
    ],
)
def test_cruxeval_outputs(loaded, number, output, verdict):
    benchmark, questions = loaded["cruxeval"]
    assert benchmark.grade(output, questions[number]) is verdict


@pytest.mark.parametrize(
    "number, output, verdict",
    [
        (0, "[ANSWER]f(['owl', 'sings', 'x'])[/ANSWER]", True),  # another input that does it
        (0, "[ANSWER]assert f(['owl', 'sings']) == ['OWL', 'SINGS'][/ANSWER]", True),
        (0, "[ANSWER]f(['owl'])[/ANSWER]", False),
        (
            0,
            "[ANSWER][]) or (['OWL', 'SINGS'][/ANSWER]",
            False,
        ),  # closes the call and adds what makes it true
        (0, "[ANSWER][]); (1[/ANSWER]", False),
        (0, "[ANSWER]['owl']) #[/ANSWER]", False),  # hides the comparison
        (0, "[ANSWER]['owl', 'sings']  # three letters and more[/ANSWER]", True),
        (2, "[ANSWER]f()[/ANSWER]", True),
        (1, "[ANSWER]3, {1: 1}[/ANSWER]", True),
    ],
)
def test_cruxeval_inputs(loaded, number, output, verdict):
    benchmark, questions = loaded["cruxeval_input"]
    assert benchmark.grade(output, questions[number]) is verdict


TEXTS = st.text("ab()[]{}='\"\\ ,", max_size=8)
LITERALS = st.recursive(
    st.integers() | TEXTS | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(TEXTS, inner, max_size=2)
    ),
    max_leaves=5,
)


@given(st.lists(LITERALS, max_size=3), LITERALS, st.sampled_from(["assert f({}) == {}", "f({})  ==  {}"]))
def test_assertions_are_taken_apart(arguments, output, form):
    inside = ", ".join(map(repr, arguments))
    text = f"[ANSWER]{form.format(inside, repr(output))}[/ANSWER]"
    assert get_benchmark("cruxeval_input").extract(text) == inside
    assert get_benchmark("cruxeval").extract(text) == repr(output)


def test_votes_on_values(loaded):
    benchmark, _ = loaded["cruxeval"]
    assert benchmark.equal("[1, 2]", "[1,2]")
    assert not benchmark.equal("[1, 2]", "[2, 1]")
    assert not benchmark.equal("g(1)", "g(2)")


def test_livecodebench_needs_every_hidden_test(loaded):
    benchmark, (lines, gap) = loaded["livecodebench"]
    assert [t["testtype"] for t in lines.extra["tests"]] == ["stdin"] * 3
    public_only = "```python\nimport sys\nfor line in sys.stdin: print({'1 2': 3, '3': 3}[line.strip()])\n```"
    assert benchmark.grade(public_only, lines) is False
    as_function = "```python\ndef largestGap(nums):\n    return max([abs(a-b) for a, b in zip(nums, nums[1:])] or [0])\n```"
    assert benchmark.grade(as_function, gap) is True
    assert (
        benchmark.grade("```python\nclass Solution:\n    def largestGap(self, nums): return 4\n```", gap)
        is False
    )


def test_livecodebench_runs_what_was_asked_for(loaded):
    benchmark, (lines, gap) = loaded["livecodebench"]
    guarded = """
```python
def main():
    for line in sys.stdin:
        print(sum(int(n) for n in line.split()) * pow(3, 4, 2) + bisect.bisect_left([1], 1) + abs(0))

if __name__ == "__main__":
    main()
```"""
    assert benchmark.grade(guarded, lines) is True
    assert benchmark.grade(f"{guarded}\n\n```python\ndef check(): pass\n```\n\n```\n3\n3\n```", lines) is True
    method = """
```python
class Solution:
    def largestGap(self, nums):
        return max([pow(abs(a - b), 1, 10**9) for a, b in zip(nums, nums[1:])] or [0])

if __name__ == "__main__":
    print(Solution().largestGap(json.loads(input())))
```"""
    assert benchmark.grade(method, gap) is True
    assert benchmark.grade(f"{method}\n```python\nclass Tests: pass\n\nTests().run()\n```", gap) is True


def test_hidden_tests_are_never_unpickled():
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    row = json.loads((FIXTURES / "livecodebench.jsonl").read_text(encoding="utf-8").splitlines()[0])
    benchmark = get_benchmark("livecodebench")
    bad = {
        "more than a string": pickle.dumps(Evil()),
        "more than a string ": pickle.dumps(["[]"]),
        "cannot be unpacked": b"no pickle",
    }
    for reason, pickled in bad.items():
        row["private_test_cases"] = base64.b64encode(zlib.compress(pickled)).decode()
        with pytest.raises(UserError, match=reason.strip()):
            benchmark.read(row, "0")
    row["private_test_cases"] = "!!"
    with pytest.raises(UserError, match="cannot be unpacked"):
        benchmark.read(row, "0")
    row["private_test_cases"] = json.dumps([{"input": "1\n", "output": "1", "testtype": "stdin"}])
    assert len(benchmark.read(row, "0").extra["tests"]) == 2


@pytest.mark.parametrize(
    "expected, found, same",
    [
        ("1 2\n3\n", "1 2 \n3", True),
        ("0.5", "0.50", True),
        ("1e3", "1000", True),
        ("1 2", "1\n2", False),
        ("Yes", "yes", False),
        ("", "\n", True),
        ("1", "1 1", False),
    ],
)
def test_outputs_are_compared_line_by_line(expected, found, same):
    assert same_output(expected, found) is same
