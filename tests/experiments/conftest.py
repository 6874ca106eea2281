"""Programs run inside the test process: imports and compilations are shared, flags are not."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from absl import flags

from experiments import common

_DEFINED: set[str] = set()  # by the last program; the flags of absl and of libraries stay

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
