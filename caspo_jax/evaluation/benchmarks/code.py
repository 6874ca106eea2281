"""Code: HumanEval (write a function), CRUXEval (say what a call returns, or which call returns it).

Everything that has to be run goes through the sandbox that the benchmark was given.
"""

from __future__ import annotations

import ast
import re
import textwrap
from typing import Any

from caspo_jax.evaluation.benchmarks.base import Benchmark, Row, identity, text
from caspo_jax.evaluation.benchmarks.blocks import FENCE, block_for, code_in, expression, parsed, same_code
from caspo_jax.evaluation.benchmarks.loading import Source
from caspo_jax.evaluation.execution import Sandbox
from caspo_jax.steps.answers import extract_answer
from caspo_jax.steps.marked import after_thought
from caspo_jax.types import Question

_TAGGED = re.compile(  # from an opening that no other follows: `in [ANSWER] tags: [ANSWER]5[/ANSWER]`
    r"\[ANSWER\]((?:(?!\[ANSWER\]).)*?)(?:\[/ANSWER\]|\Z)", re.DOTALL
)
_CLOSED_BY_OPENING = re.compile(r"\[ANSWER\]\s*\Z")  # `[ANSWER]5[ANSWER]`
_STYLED = re.compile(r"^\\text(?:tt)?\{(.*)\}$", re.DOTALL)  # what a box holds is set as text
_MISSING = object()
_IMPORTED = """\
import sys, types
sys.modules["solution"] = types.ModuleType("solution")
exec(compile({source!r}, "solution.py", "exec"), vars(sys.modules["solution"]))
"""


def as_import(source: str) -> str:
    """A program that runs another as the module `solution`: what it keeps for `__main__` does not run."""
    return _IMPORTED.format(source=source)


def _read_humaneval(row: Row, number: str) -> Question:
    return Question(
        identity(row, "humaneval", number, "task_id"),
        question=text(row, "prompt"),
        gold=text(row, "canonical_solution"),
        extra={name: text(row, name) for name in ("prompt", "entry_point", "test")},
    )


def _ask_humaneval(question: Question) -> str:
    return (
        "Complete this Python function. Give the whole function, with the imports it needs, in one ```python block.\n\n"
        f"```python\n{question.extra['prompt']}\n```"
    )


def humaneval_program(answer: str, question: Question) -> str:
    """The function, completed or written anew, with the imports and helpers of its prompt, and its test."""
    prompt, entry = question.extra["prompt"], question.extra["entry_point"]
    answer = block_for(answer, entry)
    definition = re.compile(rf"^(?:async )?def {re.escape(entry)}\b", re.MULTILINE)
    found = definition.search(prompt)
    if definition.search(answer):
        solution = f"{prompt[: found.start()] if found else ''}\n{answer}"
    else:
        first = next((line for line in answer.splitlines() if line.strip()), "")
        indented = answer if first[:1] in (" ", "\t") else textwrap.indent(answer, "    ")
        solution = f"{prompt}{indented}"
    return as_import(f"{solution}\n\n{question.extra['test']}\n\ncheck({entry})\n")


def _judge_humaneval(answer: str, question: Question, sandbox: Sandbox | None) -> bool | None:
    return None if sandbox is None else sandbox.passes(humaneval_program(answer, question))


def _read_cruxeval(name: str, asks_for: str) -> Any:
    def read(row: Row, number: str) -> Question:
        if not isinstance(row.get("input"), str):  # a call without arguments has an empty one
            text(row, "input")
        given = {"input": row["input"], "output": text(row, "output")}
        code = text(row, "code")
        return Question(
            identity(row, name, number, "id"),
            question=code,
            gold=given[asks_for],
            extra={"code": code} | given,
        )

    return read


def _ask_output(question: Question) -> str:
    return (
        f"```python\n{question.extra['code']}\n```\n\nWhat does `f({question.extra['input']})` return? "
        "Please reason step by step, and give the value as a Python literal between [ANSWER] and [/ANSWER]."
    )


def _ask_input(question: Question) -> str:
    return (
        f"```python\n{question.extra['code']}\n```\n\nWith which arguments does `f` return "
        f"`{question.extra['output']}`? Any that do will do. Please reason step by step, and give the call, such as "
        "`f(1, 'a')`, between [ANSWER] and [/ANSWER]."
    )


def _tagged(output: str) -> str | None:
    answer = _last_tag(after_thought(output)) or _last_tag(output)
    if answer is None:
        return None
    fenced = FENCE.findall(answer)
    return (fenced[-1][1] if fenced else answer).strip().strip("`").strip() or None


def _last_tag(output: str) -> str | None:
    found = _TAGGED.findall(_CLOSED_BY_OPENING.sub("", output))
    if found:
        return found[-1]
    answer = extract_answer(output, "string")
    return None if answer is None else _STYLED.sub(r"\1", answer)


def _output_in(output: str) -> str | None:
    """The value; where a whole assertion was given, its right-hand side."""
    answer = _tagged(output)
    if answer is None:
        return None
    _, value = _stated(answer)
    loose = re.fullmatch(r"(?:assert\s+)?f\(.*\)\s*==\s*(.+)", answer, re.DOTALL)
    return value or (loose[1].strip() if loose else answer)


def _input_in(output: str) -> str | None:
    """The arguments; where a whole call or assertion was given, what stands in its parentheses."""
    answer = _tagged(output)
    if answer is None:
        return None
    call, _ = _stated(answer)
    if call is not None:
        return call[call.index("(") + 1 : -1].strip()
    loose = re.fullmatch(r"(?:assert\s+)?f\((.*)\)(?:\s*==.*)?", answer, re.DOTALL)
    return loose[1].strip() if loose else answer


def _stated(answer: str) -> tuple[str | None, str | None]:
    """The sources of call and value in `assert f(...) == ...`, `f(...) == ...` or `f(...)`; None for what is not there."""
    tree = parsed(answer)
    match tree.body if tree else []:
        case [ast.Assert(test=stated)] | [ast.Expr(value=stated)]:
            pass
        case _:
            return None, None
    match stated:
        case ast.Compare(left=ast.Call(func=ast.Name("f")) as call, ops=[ast.Eq()], comparators=[value]):
            return ast.get_source_segment(answer, call), ast.get_source_segment(answer, value)
        case ast.Call(func=ast.Name("f")):
            return ast.get_source_segment(answer, stated), None
    return None, None


def _literal(source: str) -> Any:
    tree = expression(source)
    try:
        return _MISSING if tree is None else ast.literal_eval(tree)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return _MISSING


def _judge_output(answer: str, question: Question, sandbox: Sandbox | None) -> bool | None:
    """By value. Literals are compared here; another expression is evaluated in the sandbox, where `f` is not defined."""
    gold = question.extra["output"]
    expected, given = _literal(gold), _literal(answer)
    if expected is not _MISSING and given is not _MISSING:
        return bool(expected == given)
    if sandbox is None:
        return None
    if expression(answer) is None:
        return False
    return sandbox.passes(f"assert ({gold}) == ({answer}\n)")  # a line end, for a remark behind the value


def _judge_input(answer: str, question: Question, sandbox: Sandbox | None) -> bool | None:
    """By running the call; what is not the inside of one call's parentheses is wrong."""
    call = f"f({answer}\n)"  # a `#` in it hides nothing that stands behind it
    tree = expression(call)
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        return False
    if sandbox is None:
        return None
    return sandbox.passes(f"{question.extra['code']}\n\nassert {call} == ({question.extra['output']})")


_CRUXEVAL = Source("cruxeval-org/cruxeval", "test", "b96af0450242eb4da433032b90998f25588a5d0f", "MIT")

CODE_BENCHMARKS = (
    Benchmark(
        name="humaneval",
        family="code",
        source=Source("openai/openai_humaneval", "test", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544", "MIT"),
        size=164,
        read=_read_humaneval,
        ask=_ask_humaneval,
        answer=code_in,
        judge=_judge_humaneval,
        same=same_code,
        runs_code=True,
    ),
    Benchmark(
        name="cruxeval",
        family="code",
        source=_CRUXEVAL,
        size=800,
        read=_read_cruxeval("cruxeval", "output"),
        ask=_ask_output,
        answer=_output_in,
        judge=_judge_output,
        same=lambda one, other: one == other or _literal(one) == _literal(other) is not _MISSING,
        runs_code=True,
        notes="Output prediction (CRUXEval-O).",
    ),
    Benchmark(
        name="cruxeval_input",
        family="code",
        source=_CRUXEVAL,
        size=800,
        read=_read_cruxeval("cruxeval_input", "input"),
        ask=_ask_input,
        answer=_input_in,
        judge=_judge_input,
        same=lambda one, other: (
            one == other or _literal(f"({one},)") == _literal(f"({other},)") is not _MISSING
        ),
        runs_code=True,
        notes="Input prediction (CRUXEval-I): any input that gives the output is right.",
    ),
)
