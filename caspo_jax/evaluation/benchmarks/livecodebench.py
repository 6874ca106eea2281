"""LiveCodeBench: contest problems with hidden tests, on standard input or as a method call."""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks.base import Benchmark, Row, identity, text
from caspo_jax.evaluation.benchmarks.blocks import STDIN, block_for, code_in, same_code
from caspo_jax.evaluation.benchmarks.code import as_import
from caspo_jax.evaluation.benchmarks.loading import Source
from caspo_jax.evaluation.execution import Limits, Sandbox
from caspo_jax.types import Question

_LIMITS = Limits(wall_seconds=12.0, cpu_seconds=6, output_bytes=16 << 20)  # six seconds a test, as published
_LARGEST = 1 << 30  # bytes of one problem's tests, unpacked
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_FRAME = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
# What solutions take for granted: the published harness imports these before them. The modules and builtins come last:
# `from math import *` hides the builtin `pow`, `from bisect import *` the module.
_PREAMBLE = """\
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from operator import *
from typing import *
from builtins import *
import bisect, collections, copy, datetime, functools, heapq, io, itertools, json, math, operator, random, re
import statistics, string, sys
sys.setrecursionlimit(50000)
"""
_CALLS = """

def _run_the_tests():
    import json, solution
    name, tests = json.loads({payload!r})
    call = getattr(solution.Solution() if hasattr(solution, "Solution") else solution, name)
    for arguments, expected in tests:
        found = call(*arguments)
        found = list(found) if isinstance(found, tuple) else found
        assert found == expected


_run_the_tests()
"""


def _read(row: Row, number: str) -> Question:
    metadata = _json(row, "metadata") if row.get("metadata") else {}
    if not isinstance(metadata, Mapping):
        raise UserError("field `metadata` must be a JSON object")
    tests = [*_tests(_json(row, "public_test_cases"), "public_test_cases")]
    tests += _tests(_private(text(row, "private_test_cases")), "private_test_cases")
    if not tests:
        raise UserError("fields `public_test_cases` and `private_test_cases` hold no test")
    if any(t["testtype"] == "functional" for t in tests) and not metadata.get("func_name"):
        raise UserError("field `metadata` names no `func_name` for the functional tests")
    kept = ("question_title", "platform", "contest_date", "difficulty")
    return Question(
        identity(row, "livecodebench", number, "question_id"),
        question=text(row, "question_content"),
        extra={
            "starter_code": str(row.get("starter_code") or ""),
            "func_name": metadata.get("func_name"),
            "tests": tests,
        }
        | {field: str(row[field]) for field in kept if row.get(field) is not None},
    )


def _json(row: Row, field: str) -> Any:
    try:
        return json.loads(text(row, field))
    except json.JSONDecodeError as error:
        raise UserError(f"field `{field}` is not valid JSON ({error})") from error


def _private(packed: str) -> Any:
    """Hidden tests: JSON, or JSON in a pickled string, compressed, in base64. The pickle is read, never executed."""
    try:
        return json.loads(packed)
    except json.JSONDecodeError:
        pass
    try:
        inflate = zlib.decompressobj()
        pickled = inflate.decompress(base64.b64decode(packed, validate=True), _LARGEST)
        if inflate.unconsumed_tail:
            raise UserError(f"field `private_test_cases` unpacks to more than {_LARGEST} bytes")
        strings: list[Any] = []
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _STRINGS:
                strings.append(argument)
            elif opcode.name not in _FRAME:
                raise UserError(
                    f"field `private_test_cases` is a pickle of more than a string ({opcode.name})"
                )
        (only,) = strings
        return json.loads(only)
    except UserError:
        raise
    except (binascii.Error, zlib.error, ValueError) as error:
        raise UserError(f"field `private_test_cases` cannot be unpacked ({error})") from error


def _tests(found: Any, field: str) -> Iterator[dict[str, str]]:
    if not isinstance(found, list):
        raise UserError(f"field `{field}` must hold a list of tests")
    for test in found:
        if not isinstance(test, Mapping) or not all(
            isinstance(test.get(k), str) for k in ("input", "output")
        ):
            raise UserError(f"field `{field}`: a test needs the texts `input` and `output`")
        kind = test.get("testtype", "stdin")
        if kind not in ("stdin", "functional"):
            raise UserError(f"field `{field}`: testtype {kind!r} is neither stdin nor functional")
        yield {"input": test["input"], "output": test["output"], "testtype": kind}


def _ask(question: Question) -> str:
    starter = question.extra["starter_code"].strip()
    if starter:
        how = f"Use this starter code, and give the whole program in one ```python block.\n\n```python\n{starter}\n```"
    else:
        how = (
            "Read the input from standard input and write the answer to standard output. Give the whole program in one "
            "```python block."
        )
    return f"Write a correct Python program for this problem.\n\n{question.question}\n\n{how}"


def _judge(answer: str, question: Question, sandbox: Sandbox | None) -> bool | None:
    """Right when every public and hidden test passes."""
    if sandbox is None:
        return None
    calls = [t for t in question.extra["tests"] if t["testtype"] == "functional"]
    if calls:
        program = as_import(_program(answer, question.extra["func_name"])) + _call_program(question, calls)
        if not sandbox.passes(program, limits=_limits(len(calls))):
            return False
    program = _program(answer, STDIN)
    for test in question.extra["tests"]:
        if test["testtype"] == "stdin":
            result = sandbox.run(program, stdin=test["input"], limits=_LIMITS)
            if result.status != "ok" or not same_output(test["output"], result.stdout):
                return False
    return True


def _program(answer: str, wanted: str) -> str:
    return f"{_PREAMBLE}\n{block_for(answer, wanted)}\n"


def _limits(tests: int) -> Limits:
    """For several tests in one program."""
    seconds = min(_LIMITS.cpu_seconds * tests, 60)
    return Limits(wall_seconds=2.0 * seconds, cpu_seconds=seconds, output_bytes=_LIMITS.output_bytes)


def _call_program(question: Question, calls: list[dict[str, str]]) -> str:
    try:
        tests = [
            ([json.loads(line) for line in t["input"].splitlines() if line.strip()], json.loads(t["output"]))
            for t in calls
        ]
    except json.JSONDecodeError as error:
        raise UserError(f"question {question.id!r}: a functional test is not valid JSON ({error})") from error
    return _CALLS.format(payload=json.dumps([question.extra["func_name"], tests]))


def same_output(expected: str, found: str) -> bool:
    """Equal line by line without outer white space; else token by token, where numbers are compared as numbers."""
    one, other = ([line.strip() for line in side.strip().splitlines()] for side in (expected, found))
    if one == other:
        return True
    return len(one) == len(other) and all(_same_tokens(a.split(), b.split()) for a, b in zip(one, other))


def _same_tokens(one: list[str], other: list[str]) -> bool:
    return len(one) == len(other) and all(a == b or _same_number(a, b) for a, b in zip(one, other))


def _same_number(one: str, other: str) -> bool:
    try:
        return Decimal(one) == Decimal(other)
    except InvalidOperation:
        return False


LIVECODEBENCH = Benchmark(
    name="livecodebench",
    family="code",
    source=Source(
        "livecodebench/code_generation_lite",
        "test",
        "0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
        "CC (as its card says, without a version)",
        files=tuple(f"test{n}.jsonl" for n in ("", 2, 3, 4, 5, 6)),
    ),
    size=1055,
    read=_read,
    ask=_ask,
    answer=code_in,
    judge=_judge,
    same=same_code,
    runs_code=True,
    notes="release_v6: six files, 4.5 GB on the hub, streamed. `extra['contest_date']` tells what a model may have seen.",
)
