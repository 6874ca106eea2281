"""Programs run inside the test process: imports and compilations are shared, flags are not."""

from __future__ import annotations

import importlib
import json
import random
import sys
from pathlib import Path

import pytest
from absl import flags

from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from experiments import common

_DEFINED: set[str] = set()  # by the last program; the flags of absl and of libraries stay

SMALL_FAITHFULNESS = {"samples": 2, "max_new_tokens": 24, "draws": 20, "batch_size": 64, "probe_l2": 10.0}
GOLDENS = Path(__file__).parent.parent / "golden"


@pytest.fixture
def program(capsys, monkeypatch):
    """run(name, **flags) -> (exit code, stdout, stderr)."""

    def run(name: str, *args: str, **given: object) -> tuple[int, str, str]:
        parsed = flags.FLAGS
        for flag in _DEFINED:
            delattr(parsed, flag)
        module = importlib.import_module(f"experiments.{name}")
        before = set(parsed)
        argv = [name, *(f"--{key}={value}" for key, value in given.items()), *args]
        monkeypatch.setattr(
            sys, "argv", argv
        )  # where config flags look, when defined, for the fields that are set
        module.define_flags()
        _DEFINED.clear()
        _DEFINED.update(set(parsed) - before)
        left = parsed(argv)
        capsys.readouterr()
        code = common.guarded(module.main, left)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def write(tmp_path):
    """write(name, records) -> path of a JSONL file."""

    def save(name: str, records: list[dict]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        return path

    return save


def read(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def hedged(tmp_path_factory):
    """Two traces of each of three questions, for `faithfulness`; the second hedged, and wrong by one number."""
    folder = tmp_path_factory.mktemp("faithfulness")
    task = get_task("graph")
    questions = task.questions("tune", 3, seed=5)
    records = []
    for i, question in enumerate(questions):
        problem = task.parse(question.question)
        steps = task.solve(problem, random.Random(i), dict(task.basics))
        wrong = [*steps[:-1], f"answer: {int(question.gold) + 1}, maybe"]
        for k, text in enumerate(("\n\n".join(steps), "\n\n".join(wrong))):
            records.append(question_to_record(question) | {"id": f"{question.id}/{k}", "text": text})
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def contents(folder):
    return {
        p.name: p.read_bytes()
        for p in Path(folder).glob("*")
        if p.suffix in (".jsonl", ".txt") and p.is_file()
    }


def faithfulness_flags(hedged, out):
    return {"model": get_task("graph").policy_path, "traces": hedged, "out_dir": out, **SMALL_FAITHFULNESS}


@pytest.fixture(scope="session")
def kept():
    return {}


@pytest.fixture
def finished(program, hedged, tmp_path_factory, kept):
    """A finished run of `faithfulness`, made by the first test that asks: its folder, its files, and what it printed."""
    if not kept:
        out = tmp_path_factory.mktemp("finished")
        code, printed, err = program("faithfulness", **faithfulness_flags(hedged, out))
        assert code == 0, err
        kept.update(folder=out, files=contents(out), printed=printed)
    return kept
