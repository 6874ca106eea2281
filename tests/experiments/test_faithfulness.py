"""The faithfulness program on the shipped tiny policy: all stages, killed anywhere, two policies, bad input."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from caspo_jax.outputs import JsonlOutput
from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from tests.experiments.conftest import read
from tests.experiments.test_bad_input import one_line

TASK = get_task("graph")
SMALL = {"samples": 2, "max_new_tokens": 24, "draws": 20, "batch_size": 64, "probe_l2": 10.0}
FILES = ("traces", "decisiveness", "token", "hidden", "continuations", "prefix", "probe", "steps")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Three hedged traces of each of two questions; the second wrong by one number."""
    folder = tmp_path_factory.mktemp("faithfulness")
    questions = TASK.questions("tune", 3, seed=5)
    records = []
    for i, question in enumerate(questions):
        problem = TASK.parse(question.question)
        steps = TASK.solve(problem, random.Random(i), dict(TASK.basics))
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


def flags_of(measured, out):
    return {"model": TASK.policy_path, "traces": measured, "out_dir": out, **SMALL}


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def whole(program, measured, tmp_path_factory, kept):
    """A finished run, made by the first test that asks: its folder, its files, and what it printed."""
    if not kept:
        out = tmp_path_factory.mktemp("whole")
        code, printed, err = program("faithfulness", **flags_of(measured, out))
        assert code == 0, err
        kept.update(folder=out, files=contents(out), printed=printed)
    return kept


def test_all_stages(program, measured, whole):
    out = whole["folder"]
    for name in FILES:
        assert (out / f"{name}.jsonl").exists(), name
    report = json.loads((out / "report.json").read_text())
    assert "What trivial words would score" in (out / "report.html").read_text(encoding="utf-8")
    assert report["traces"]["traces"] == 6
    assert report["traces"]["questions"] == 3
    assert report["traces"]["retokenised"] == 6
    assert set(report["faithfulness"]["lexicon"]) == {
        "token",
        "entropy",
        "hidden",
        "hidden_running",
        "prefix",
        "probe",
    }
    steps = read(out / "steps.jsonl")
    for file in out.rglob("*.jsonl"):
        assert all(set(record["schema"]) == {"name", "version"} for record in read(file)), file
    assert len(steps) == report["traces"]["steps"]
    for step in steps:
        for value in (*step["decisiveness"].values(), *step["confidence"].values()):
            assert value is None or 0.0 <= value <= 1.0
    last = [s for s in steps if s["text"].startswith("answer")]
    assert {s["right"] for s in last} == {True, False}
    assert {round(s["decisiveness"]["lexicon"], 2) for s in last} == {0.42, 0.9}
    sure = {
        right: np.mean([s["confidence"]["prefix"] for s in last if s["right"] is right])
        for right in (True, False)
    }
    assert sure[True] > sure[False]  # the model would not say the wrong number
    for plot in ("decisiveness_lexicon", "traces_lexicon_hidden", "agreement"):
        assert (out / f"{plot}.png").stat().st_size > 5000
    assert (out / "probe" / "probe.safetensors").exists()
    assert "words scored by lexicon" in whole["printed"]
    assert program("faithfulness", "--noplots", **flags_of(measured, out))[0] == 0
    assert contents(out) == whole["files"]


@pytest.mark.parametrize("appends", range(6))
def test_killed_at_any_stage_it_goes_on(program, measured, tmp_path, whole, monkeypatch, appends):
    """A kill after so many writes, each leaving a torn line behind: the next run ends with the same files."""
    real, done = JsonlOutput.append, []

    def append(self, records):
        if len(done) == appends:
            real(self, records[: len(records) // 2])
            with open(self._partial, "ab") as file:
                file.write(b'{"id": "torn')
            raise KeyboardInterrupt
        done.append(self.path.name)
        real(self, records)

    out = tmp_path / "run"
    monkeypatch.setattr(JsonlOutput, "append", append)
    assert program("faithfulness", **flags_of(measured, out))[0] == 130
    assert not (out / "report.json").exists()
    monkeypatch.setattr(JsonlOutput, "append", real)
    code, _, err = program("faithfulness", "--noplots", **flags_of(measured, out))
    assert code == 0, err
    assert contents(out) == whole["files"]


# The program whose first write to a file that is not named in SPARED dies in the middle.
KILLED = """
import os, signal
from caspo_jax.outputs import JsonlOutput
from experiments import faithfulness, common

real, spared = JsonlOutput.append, os.environ["SPARED"].split()

def append(self, records):
    if records and self.path.name not in spared:
        real(self, records[: len(records) // 2])
        with open(self._partial, "ab") as file:
            file.write(b'{"id": "torn')
        print(self.path.name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, records)

JsonlOutput.append = append
faithfulness.define_flags()
common.run(faithfulness.main)
"""


@pytest.mark.slow
def test_sigkill_in_every_stage(measured, tmp_path, whole):
    """Real processes, each ended by the system in the middle of a write to the next file, until one gets through."""
    out = tmp_path / "run"
    given = [f"--{k}={v}" for k, v in flags_of(measured, out).items()]
    at: list[str] = []
    for _ in range(12):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, "--noplots", *given],
            env={**os.environ, "SPARED": " ".join(at)},
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert not (out / "report.json").exists()
        at.append(ended.stdout.split()[-1])
    assert ended.returncode == 0
    assert {"hidden.jsonl", "prefix.jsonl", "probe.jsonl"} <= set(at), at
    assert contents(out) == whole["files"]


def test_stages_one_by_one_and_another_judge(program, measured, tmp_path, whole):
    out = tmp_path / "run"
    for stage in ("token", "hidden", "decisiveness"):
        assert program("faithfulness", **flags_of(measured, out), stages=stage)[0] == 0
    for name in ("token", "hidden", "decisiveness"):
        assert contents(out)[f"{name}.jsonl"] == whole["files"][f"{name}.jsonl"]
    scores = tmp_path / "scores.jsonl"
    lines = [
        {"trace_id": t["id"], "decisiveness": [1.0] * len(t["steps"]), "steps": t["steps"]}
        for t in read(whole["folder"] / "traces.jsonl")
    ]
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recorded = {"scores": scores, "stages": "decisiveness,report"}
    code, _, err = program("faithfulness", "--noplots", **flags_of(measured, out), **recorded)
    assert code == 1
    assert "scorers" in err
    assert program("faithfulness", "--noplots", "--overwrite", **flags_of(measured, out), **recorded)[0] == 0
    report = json.loads((out / "report.json").read_text())
    assert set(report["faithfulness"]) == {"lexicon", "recorded"}
    assert report["scorer_agreement"][0]["first"] == "lexicon"
    assert set(report["faithfulness"]["recorded"]) == {"token", "entropy", "hidden", "hidden_running"}


def test_a_stage_left_from_another_run_is_not_reported(program, measured, tmp_path, whole):
    """Some stages run anew with other settings, the others' files still there."""
    shutil.copytree(whole["folder"], tmp_path / "o")
    flags = flags_of(measured, tmp_path / "o") | {"overwrite": True, "steps": "all", "plots": False}
    code, _, err = program("faithfulness", **flags, stages="decisiveness,report")
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "token.jsonl: measured with other settings than traces.jsonl (steps)" in err
    for name in ("token", "hidden", "prefix", "probe"):
        (tmp_path / "o" / f"{name}.jsonl").unlink()
    assert program("faithfulness", **flags, stages="decisiveness,report")[0] == 0


def test_compare(program, whole, tmp_path):
    folder = whole["folder"]
    code, printed, err = program("faithfulness", compare=f"{folder},{folder}", out_dir=tmp_path, draws=20)
    assert code == 0, err
    record = json.loads((tmp_path / "compare.json").read_text())
    assert record["schema"] == {"name": "faithfulness_compare", "version": 1}
    assert record["questions"] == 3
    assert record["faithfulness"]["lexicon"]["hidden"]["mfg"]["difference"] == 0.0
    assert "difference" in printed


def test_order(program, whole, tmp_path):
    folder = whole["folder"]
    code, printed, err = program("faithfulness", order=f"{folder},{folder}", out_dir=tmp_path)
    assert code == 0, err
    record = json.loads((tmp_path / "order.json").read_text())
    assert record["schema"] == {"name": "faithfulness_order", "version": 1}
    found = record["order"]["lexicon"]["entropy"]["mfg"]
    assert found["verdict"] == "not"  # no policy is above itself
    assert "NO" in printed
    code, _, err = program("faithfulness", order=f"{folder},nowhere", out_dir=tmp_path)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "no report.json in it" in err
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "not a faithfulness"),
        ('{"a": 1}', "not a faithfulness"),
    ):
        (tmp_path / "report.json").write_text(text)
        code, _, err = program("faithfulness", order=f"{folder},{tmp_path}", out_dir=tmp_path / "o")
        assert (code, len(err.strip().splitlines())) == (1, 1)
        assert message in err


@pytest.mark.parametrize(
    "kind, theirs", [("compare", "compare.txt"), ("compare", "report.html"), ("order", "order.json")]
)
def test_folders_held_together_replace_their_own_files_alone(program, whole, tmp_path, kind, theirs):
    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "out"
    for folder in (one, other):
        shutil.copytree(whole["folder"], folder, ignore=shutil.ignore_patterns("*.png", "report.html"))
    flags = {kind: f"{one},{other}", "out_dir": out, "draws": 20}
    out.mkdir()
    (out / theirs).write_text("mine")
    one_line(program("faithfulness", **flags), theirs, "--overwrite")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(theirs, "mine")]
    assert program("faithfulness", **flags, overwrite="true")[0] == 0
    written = contents(out)
    assert program("faithfulness", **flags)[0] == 0  # its own now
    one_line(program("faithfulness", **(flags | {kind: f"{other},{one}"})), "folders", "--overwrite")
    read_from = other / ("steps.jsonl" if kind == "compare" else "report.json")
    read_from.write_text(read_from.read_text() + "\n")
    one_line(program("faithfulness", **flags), "the contents changed", "--overwrite")
    assert contents(out) == written
    assert program("faithfulness", **flags, overwrite="true")[0] == 0


def test_another_rubric_is_another_judge(program, tmp_path):
    """A rubric's hash is in the manifest: scores by another one are not taken for these."""
    from experiments import faithfulness_judges

    rubric, seen = tmp_path / "r.md", []
    judge = {"decisiveness_judge": TASK.policy_path, "rubric": rubric}
    for text in ("Rate {step}", "Rate this: {step}"):
        rubric.write_text(text)
        assert (
            program("faithfulness", out_dir=tmp_path, **judge)[0] == 1
        )  # without --traces: its flags are set
        seen.append(faithfulness_judges.build_scorers()[1])
    assert seen[0]["judge"] == seen[1]["judge"]
    assert seen[0]["rubric"] != seen[1]["rubric"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stages": "tokens"}, "--stages=tokens: choose from"),
        ({"traces": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"model": "nowhere"}, "model folder not found"),
        ({"consistency": "judge"}, "needs --contradiction_judge"),
        ({"compare": "a,b"}, "drop --traces"),
        ({"rubric": "x.md"}, "--rubric goes with"),
        ({"probe": "nowhere", "stages": "probe"}, "no probe here"),
    ],
)
def test_bad_input_is_one_line(program, measured, tmp_path, changes, message):
    code, _, err = program("faithfulness", **(flags_of(measured, tmp_path / "o") | changes))
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["traces", "steps", "prefix"])
def test_the_traces_that_are_read_are_not_written_over(program, measured, tmp_path, name):
    mine = tmp_path / f"{name}.jsonl"
    shutil.copy(measured, mine)
    code, _, err = program("faithfulness", **(flags_of(mine, tmp_path) | {"stages": "decisiveness"}))
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "choose another folder" in err
    assert mine.read_bytes() == measured.read_bytes()


@pytest.mark.parametrize("changes", [{"mu": 1.5}, {"delta": -0.1}, {"delta": 3}])
def test_settings_of_rcc_outside_their_range(program, measured, tmp_path, changes):
    """They would give confidences outside [0, 1], clipped without a word."""
    with pytest.raises(flags.IllegalFlagValueError, match="range"):
        program("faithfulness", **(flags_of(measured, tmp_path / "o") | changes))


def test_a_file_in_the_folder_s_place_is_refused_first(program, measured):
    for given in (
        flags_of(measured, measured),
        {"compare": "nowhere,nowhere", "out_dir": measured / "below"},
    ):
        code, _, err = program("faithfulness", **given)
        assert (code, len(err.strip().splitlines())) == (1, 1)
        assert "in.jsonl is a file" in err


def test_without_traces(program, tmp_path):
    code, _, err = program("faithfulness", out_dir=tmp_path, model=TASK.policy_path)
    assert code == 1
    assert "--traces is missing" in err
