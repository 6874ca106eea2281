"""`evaluate` on every benchmark, from its files to the table, with outputs that are known to be right or wrong."""

import json
import threading

import pytest

from caspo_jax.evaluation.benchmarks import get_benchmark
from caspo_jax.evaluation.execution.sandbox import Sandbox
from caspo_jax.tasks import get_task
from caspo_jax.types import Trace
from tests.evaluation.benchmarks.test_benchmarks import FIXTURES, SETS, right_output, wrong_output

MODEL = get_task("graph").policy_path


@pytest.fixture
def outputs(monkeypatch):
    """Of each question that is asked, by turns: the text that the policy writes."""
    texts = {}

    def generate(model, tokenizer, questions, *_, **__):
        return [
            Trace(q.id, q.question, None, None, (0,), (1,), texts[q.id], "eos", path_confidence=0.5)
            for q in questions
        ]

    monkeypatch.setattr("caspo_jax.evaluation.strategies.single.generate", generate)
    return texts


def run(program, folder, names):
    """Question -> is the greedy answer right?"""
    data = [f"--data={name}={FIXTURES}" for name in names]
    flags = {"model": MODEL, "benchmarks": ",".join(names), "out_dir": folder, "strategies": "greedy"}
    flags |= {"tune": 0, "max_new_tokens": 8, "allow_code_execution": True}
    status, _, err = program("evaluate", *data, **flags)
    assert status == 0, err
    answers = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    return {answer["question"]: answer["correct"] for answer in answers}


def test_what_is_right_is_found_right_in_every_benchmark(program, outputs, tmp_path):
    want = {}
    for name in SETS:
        for i, question in enumerate(get_benchmark(name).load(FIXTURES)):
            want[question.id] = i % 2 == 0
            outputs[question.id] = (right_output if want[question.id] else wrong_output)(name, question)
    assert run(program, tmp_path, SETS) == want


def test_programs_are_run_as_many_at_once_as_there_are_cores(program, outputs, tmp_path, monkeypatch):
    asked = get_benchmark("humaneval").load(FIXTURES)
    assert len(asked) == 2
    outputs |= {question.id: right_output("humaneval", question) for question in asked}
    both_there, passes = threading.Barrier(2), Sandbox.passes

    def run_beside_another(sandbox, source):
        both_there.wait(timeout=60)
        return passes(sandbox, source)

    monkeypatch.setattr(Sandbox, "passes", run_beside_another)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert run(program, tmp_path, ["humaneval"]) == {question.id: True for question in asked}
