"""The same command started twice: the second is refused in one line, and the first's output stays as it is."""

import contextlib
import json
import shutil

import pytest

from tests.experiments.test_bad_input import MODEL, one_line
from tests.experiments.test_bad_models_and_lines import INPUTS, READERS, flags_of

fcntl = pytest.importorskip("fcntl")


@contextlib.contextmanager
def locked_by_another(lock):
    """What another process's lock is to this one, without the process."""
    with open(lock, "w", encoding="utf-8") as file:
        file.write("process 7 on elsewhere")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", READERS)
def test_the_second_of_two_runs_is_refused(program, tmp_path, write, name):
    _, record = INPUTS[name]
    flags = flags_of(name, tmp_path, MODEL, write("in.jsonl", [record]))
    if folder := flags.get("out_dir"):
        output, lock = folder, folder / ".manifest.json.lock"
    else:
        output = flags["output"]
        lock = output.with_name(f".{output.name}.manifest.json.lock")
    for more in ({}, {"overwrite": "true"}):
        with locked_by_another(lock):
            before = contents(tmp_path)
            said = "another run (process 7 on elsewhere) is writing"
            one_line(program(name, **flags, **more), said, f"{output}: wait")
            assert contents(tmp_path) == before


def test_a_run_leaves_no_lock_behind(program, tmp_path, write):
    _, record = INPUTS["pairs"]
    flags = flags_of("pairs", tmp_path, MODEL, write("in.jsonl", [record]))
    flags["trl_output"] = flags["output"].with_name("trl.jsonl")
    assert program("pairs", **flags)[0] == 0
    names = ["out.jsonl", "out.jsonl.manifest.json", "trl.jsonl", "trl.jsonl.manifest.json"]
    assert sorted(path.name for path in flags["output"].parent.iterdir()) == names


def test_overwriting_removes_nothing_of_a_run_that_goes_on(program, tmp_path, write):
    """--overwrite with other settings clears a training run's folder: not while another process fills it."""
    _, record = INPUTS["train"]
    flags = flags_of("train", tmp_path, MODEL, write("in.jsonl", [record]))
    run = flags["out_dir"]
    shutil.copy(write("metrics.jsonl", [{"step": 1}]), run / "metrics.jsonl")
    for name, text in (("run.json", {}), ("manifest.json", {"program": "train", "config": {}})):
        (run / name).write_text(json.dumps(text))
    with locked_by_another(run / ".manifest.json.lock"):
        one_line(program("train", **flags, overwrite="true"), "another run")
    assert {path.name for path in run.iterdir()} >= {"metrics.jsonl", "run.json", "manifest.json"}
