"""The code that was asked for, found among other code and prose."""

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspo_jax.evaluation.benchmarks import get_benchmark
from caspo_jax.evaluation.benchmarks.blocks import STDIN, block_for, code_in


@pytest.mark.parametrize(
    "output, code",
    [
        ("```python\nx = 1\n```\nthen\n```py\nx = 2\n```", "x = 2"),
        ("so:\n```\nx = 1\n\n```", "x = 1"),
        ("cut off:\n```python\nx = 1\ny = ", "x = 1\ny ="),
        ("    return 1\n\n    # end\nprint(2)", "    return 1\n\n    # end"),
        ("def f():\n    return 1\n", "def f():\n    return 1"),
        ("```python\n\n```\nreturn 5", "```python\n\n```\nreturn 5"),
        ("```\nreturn 1\n```\nprints\n```text\n1\n```", "return 1"),
        ("```py\nreturn 1\n```\nprints\n```\n1\n```", "return 1"),
        ("```cpp\nint x;\n```", "int x;"),  # not Python, but all there is
        (
            "```python\ndef f(): return 1\n```\nbetter:\n```python\ndef f(): return 2\n```",
            "def f(): return 2",
        ),
        ("  \n ", None),
        ("Two:\n\ndef f(): return 1\n\nand\n\ndef f(): return 2\n\nDone.", "def f(): return 2"),
        ("f: g(x) = 2\nx = 3 is what we want", "f: g(x) = 2\nx = 3 is what we want"),  # no code
    ],
)
def test_code_in(output, code):
    assert code_in(output) == code


def test_reading_a_model_s_code_warns_of_nothing(recwarn):
    assert code_in('```python\nx = "\\d"\n```') == 'x = "\\d"'
    assert not get_benchmark("cruxeval").equal("1if 2else 3", "'\\d'")
    assert get_benchmark("cruxeval_input").equal("'\\d'", "'\\\\d'")
    assert not recwarn


AROUND = [
    "Some prose.",
    "```python\nprint(total([1, 2]))\n```",
    "```\n3\n```",
    "```bash\npython total.py\n```",
    "```cpp\nint total() { return 1; }\n```",
    "```text\nclass Text: pass\n```",
    "```python\ndef total(:\n```",
    "- a list\n\n    ```Python\n    class TestTotal(TestCase):\n        def test_it(self): assert total([1]) == 1\n    ```",
]
SOLUTIONS = {
    "total": "def total(n):\n    return sum(n)",
    "method": "class Solution:\n    def method(self, n):\n        return sum(n)",
    STDIN: "import sys\n\nprint(sum(map(int, sys.stdin)))",
}


@given(
    st.sampled_from(sorted(SOLUTIONS)),
    st.lists(st.sampled_from(AROUND), max_size=4),
    st.lists(st.sampled_from([*AROUND, "```python\ndef helper(): pass\n```"]), max_size=4),
    st.sampled_from(["", "py", "python", "Python3", "{.python}", "python title=a.py"]),
    st.sampled_from(["", "  ", "    ", "\t"]),
)
def test_the_block_that_is_asked_for_is_found_among_others(wanted, before, after, tag, indent):
    fenced = textwrap.indent(f"```{tag}\n{SOLUTIONS[wanted]}\n```", indent)
    answer = code_in("\n\n".join([*before, fenced, *after]))
    assert block_for(answer, wanted) == SOLUTIONS[wanted]
    assert block_for(code_in(answer), wanted) == SOLUTIONS[wanted]


PROSE = [
    "Here is the function, with total = 3 for two items:",
    "Explanation",
    "Complexity: linear",
    "def total is what was asked for",
    "* n = 2 gives (1 + 1)\n    as an indented remark",
    "a" * 20_000,
]


@given(
    st.sampled_from(sorted(SOLUTIONS)),
    st.lists(st.sampled_from(PROSE), min_size=1, max_size=3),
    st.lists(st.sampled_from(PROSE), max_size=3),
    st.sampled_from(["\n", "\n\n"]),
    st.sampled_from(
        [
            "",
            "import math\n\n\n@functools.cache\ndef helper(\n    n,\n):\n    '''Half\nof it.'''\n    return n / 2\n\n",
        ]
    ),
)
def test_code_among_prose_without_fences(wanted, before, after, between, helper):
    code = helper + SOLUTIONS[wanted]
    answer = code_in(between.join([*before, code, *after]))
    assert block_for(answer, wanted) == code
    assert block_for(code_in(answer), wanted) == code
