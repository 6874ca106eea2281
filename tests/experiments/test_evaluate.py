"""`evaluate` on the shipped tiny policy: figures recomputed from records, kills, comparisons."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from caspo_jax import metrics
from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from tests.experiments.conftest import read

TASK = get_task("graph")
README = Path(__file__).parents[2] / "experiments" / "README.md"
SMALL = {
    "max_new_tokens": 64,
    "batch_size": 64,
    "limit": 16,
    "group": 8,
    "num_samples": 4,
    "cat_sizes": "2",
    "tune": 0,
}
FIELDS = ("benchmark", "strategy", "size", "accuracy", "low", "high", "tokens", "calls", "seconds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


def run(program, out, **more):
    flags = {
        "model": TASK.policy_path,
        "benchmarks": "graph",
        "strategies": "greedy,sample,self_consistency,sequence_vote,cat",
    }
    return program("evaluate", **(flags | SMALL | {"out_dir": out} | more))


def script(word: str) -> str:
    """The documented script that has this word in it."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


def figures(out):
    rows = json.loads((out / "table.json").read_text())["rows"]
    return [[row[field] for field in FIELDS if field != "seconds"] for row in rows]


def calibration(out):
    return json.loads((out / "calibration.json").read_text())["rows"]


def test_the_second_table_says_whether_confidence_in_answers_is_to_be_believed(program, folder):
    whole = folder / "whole"
    if not whole.exists():
        assert run(program, whole)[0] == 0
    records = read(whole / "answers.jsonl")
    rows = {(r["strategy"], r["size"]): r for r in calibration(whole)}
    assert set(rows) == {("greedy", "1"), ("sample", "1"), ("cat", "2")}  # many outputs have a say in a vote
    for (strategy, size), row in rows.items():
        mine = [r for r in records if (r["strategy"], r["size"]) == (strategy, size)]
        mine = [r for r in mine if r["path_confidence"] is not None]
        c, right = (np.array([r[f] for r in mine], float) for f in ("path_confidence", "correct"))
        assert row["answers"] == len(mine)
        assert row["bias"] == pytest.approx(c.mean() - right.mean())
        assert row["brier"] == pytest.approx(np.mean((c - right) ** 2))
        assert row["ece"] == pytest.approx(metrics.expected_calibration_error(c, right))
        for name in ("bias", "brier", "ece", "brier_scaled", "ece_scaled"):
            assert row[f"{name}_low"] <= row[f"{name}_high"]
    assert rows["sample", "1"]["answers"] == 16 * 4
    assert rows["sample", "1"]["within_question_groups"] > 0
    assert (rows["greedy", "1"]["within_question"], rows["greedy", "1"]["within_question_groups"]) == (
        None,
        0,
    )
    samples = {(s["question"], s["index"]): s["path_confidence"] for s in read(whole / "samples.jsonl")}
    for r in records:
        if r["strategy"] == "sample":
            assert r["path_confidence"] == samples[r["question"], r["index"]]
        elif "vote" in r["strategy"] or r["strategy"] == "self_consistency":
            assert r["path_confidence"] is None
    text = (whole / "calibration.md").read_text(encoding="utf-8")
    assert "Brier scaled" in text
    assert "Confidence in answers" in (whole / "report.html").read_text(encoding="utf-8")


def test_table_is_recomputed_from_the_answers_by_the_documented_script(program, folder):
    code, printed, err = run(program, folder / "whole")
    assert code == 0, err
    rows = json.loads((folder / "whole" / "table.json").read_text())["rows"]
    assert {(r["strategy"], r["size"]) for r in rows} >= {
        ("greedy", "1"), ("sample", "1"), ("self_consistency", "4"), ("sequence_vote", "2"), ("cat", "2"), ("sequence_vote", "= cat 2"),
    }  # fmt: skip
    assert len([line for line in script("bootstrap_interval").splitlines() if line]) == 10
    done = subprocess.run(
        [sys.executable, "-c", script("bootstrap_interval"), str(folder / "whole")],
        capture_output=True,
        text=True,
        check=True,
    )
    again = [json.loads(line) for line in done.stdout.splitlines()]
    assert again == [[row[field] for field in FIELDS] for row in rows]
    for row in rows:  # and what is printed are these figures
        assert f"{row['accuracy']:.3f}" in printed
    paired = json.loads((folder / "whole" / "paired.json").read_text())["rows"]
    row = next(r for r in paired if r["baseline"] == "sequence_vote")
    names = [row["benchmark"], row["strategy"], row["size"], row["baseline"], row["baseline_size"]]
    done = subprocess.run(
        [sys.executable, "-c", script("paired_permutation_test"), str(folder / "whole"), *names],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [row[field] for field in ("difference", "low", "high", "p_value")]
    records = read(folder / "whole" / "answers.jsonl")
    assert len({r["id"] for r in records}) == len(records)
    samples = read(folder / "whole" / "samples.jsonl")
    assert len(samples) == 16 * 4
    for file in (folder / "whole").rglob("*.jsonl"):
        assert all(set(record["schema"]) == {"name", "version"} for record in read(file)), file
    assert (folder / "whole" / "curve.png").stat().st_size > 1000
    assert "CaT against the others" in (folder / "whole" / "report.html").read_text(encoding="utf-8")
    trees = read(folder / "whole" / "samples" / "graph" / "cat_2.trees.jsonl")
    elected = {r["question"]: r["answer"] for r in records if r["strategy"] == "cat"}
    assert {t["question_id"]: t["answer"] for t in trees}.items() <= elected.items()
    assert trees[0]["gamma"] == 1.0
    # A sample's own record and its answer agree; votes cost what their samples cost.
    spent = {}
    for s in samples:
        spent.setdefault(s["question"], []).append(s["tokens"])
    for r in records:
        if (r["strategy"], r["size"]) == ("self_consistency", "4"):
            assert r["tokens"] == sum(spent[r["question"]])
            assert r["calls"] == 1 + max(spent[r["question"]])


def test_progress_is_shown_while_a_part_is_decoded(program, folder):
    """A part of long outputs takes hours."""
    code, out, err = run(
        program, folder / "shown", strategies="greedy", batch_size=2, limit=8, log_json="true"
    )
    assert code == 0, err
    events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    parts = [e for e in events if e.get("stage") == "graph"]
    decoding = [e for e in parts if "decoded" in e]
    assert {(e["done"], e["total"], e["part"]) for e in decoding} == {(0, 1, "greedy")}
    assert [e["decoded"] for e in decoding][-1] == "8 of 8"
    assert len({e["decoded"] for e in decoding}) > 2
    assert [e["done"] for e in parts if "decoded" not in e] == [1]


@pytest.mark.parametrize("torn", [0.3, pytest.param(0.75, marks=pytest.mark.ci)])
def test_killed_and_resumed_gives_the_same_table(program, folder, torn):
    whole, killed = folder / "whole", folder / f"killed_{torn}"
    if not whole.exists():
        assert run(program, whole)[0] == 0
    shutil.copytree(whole, killed)
    for name in ("answers", "samples", "groups", "tuning"):  # as a kill in mid-course leaves them
        manifest = killed / f"{name}.jsonl.manifest.json"
        contents = json.loads(manifest.read_text()) | {"complete": False}
        manifest.write_text(json.dumps(contents))
        data = (killed / f"{name}.jsonl").read_bytes()
        (killed / f"{name}.jsonl").unlink()
        # A group is marked after its answers are on the disk, so these are further on.
        kept = data[: int(len(data) * (torn if name == "groups" else min(1.0, torn + 0.25)))]
        if name == "groups":
            kept = kept[: kept.rfind(b"\n") + 1]
        (killed / f"{name}.jsonl.partial").write_bytes(kept)
    for name in ("table.json", "calibration.json", "paired.json"):
        (killed / name).unlink()
    code, _, err = run(program, killed)
    assert code == 0, err
    assert sorted(map(tuple, figures(killed))) == sorted(map(tuple, figures(whole)))
    assert sorted(calibration(killed), key=str) == sorted(calibration(whole), key=str)
    ours, theirs = ({r["id"]: r | {"seconds": 0} for r in read(f / "answers.jsonl")} for f in (killed, whole))
    assert ours == theirs
    before = (killed / "answers.jsonl").read_bytes()
    assert run(program, killed)[0] == 0  # nothing left to do
    assert (killed / "answers.jsonl").read_bytes() == before


def test_other_settings_are_refused_and_runs_compared_without_a_model(program, write, folder):
    whole = folder / "whole"
    if not whole.exists():
        assert run(program, whole)[0] == 0
    code, _, err = run(program, whole, temperature=0.9)
    assert code == 1
    assert "temperature" in err
    own = {"benchmarks": "", "strategies": "greedy"}
    own["input"] = write("q.jsonl", [question_to_record(q) for q in TASK.questions("tune", 4, seed=5)])
    assert run(program, folder / "own", **own)[0] == 0
    code, _, err = run(program, folder / "own", **own, answers="letter")
    assert code == 1
    assert "answers: 'task' then, 'letter' now" in err
    code, out, err = program(
        "evaluate", compare=f"{whole},{whole / 'answers.jsonl'}", out_dir=folder / "compared"
    )
    assert code == 0, err
    assert "equal" not in out
    table = (folder / "compared" / "compare.md").read_text(encoding="utf-8")
    assert table in out
    assert "| not told apart |" in table
    assert re.search(r"^  not told apart +\d", out, re.MULTILINE)
    page = (folder / "compared" / "report.html").read_text(encoding="utf-8")
    assert "not told apart" in page
    assert not re.search(r">\s*equal\s*<", page)
    rows = json.loads((folder / "compared" / "compare.json").read_text())["rows"]
    assert all(row["difference"] == 0 and row["verdict"] == "equal" for row in rows)
    lines = (whole / "answers.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    name = json.loads(lines[0])["question"]
    fewer = folder / "fewer.jsonl"
    fewer.write_text("".join(x for x in lines if json.loads(x)["question"] != name), encoding="utf-8")
    code, _, err = program("evaluate", compare=f"{whole},{fewer}", out_dir=folder / "partly")
    assert (code, "1 of the" in err) == (0, True)
    found = json.loads((folder / "partly" / "compare.json").read_text())
    assert {(row["only_a"], row["only_b"]) for row in found["rows"]} == {(1, 0)}
    assert found["left_out"][0] in err
    assert found["left_out"][0] in (folder / "partly" / "report.html").read_text(encoding="utf-8")
    fewer.write_text("".join(x for x in lines if json.loads(x)["question"] == name), encoding="utf-8")
    rest = folder / "rest.jsonl"
    rest.write_text("".join(x for x in lines if json.loads(x)["question"] != name), encoding="utf-8")
    code, _, err = program("evaluate", compare=f"{fewer},{rest}", out_dir=folder / "apart")
    assert (code, err.count("\n"), "no question in common" in err) == (1, 1, True)
    assert program("evaluate", compare=str(whole))[0] == 1
    code, _, err = program("evaluate", compare=f"{whole},{whole}", out_dir=folder / "compared")
    assert (code, "answers.jsonl' then" in err) == (1, True)
    (folder / "mine").mkdir()
    (folder / "mine" / "compare.md").write_text("mine")
    code, _, err = program("evaluate", compare=f"{whole},{whole}", out_dir=folder / "mine")
    assert (code, "compare.md" in err) == (1, True)
    assert [path.name for path in (folder / "mine").iterdir()] == ["compare.md"]


def test_base_and_policy_in_one_command(program, folder):
    out = folder / "both"
    code, _, err = run(program, out, base=TASK.policy_path, strategies="greedy,sequence_vote,cat", limit=8)
    assert code == 0, err
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert {(r["strategy"], r["verdict"], r["difference"]) for r in rows} == {
        (name, "equal", 0.0) for name in ("greedy", "sequence_vote", "cat")
    }
    assert figures(out / "base") == figures(out / "model")
    for name in ("curve.png", "report.html", "base/against.graph.png", "model/report.html"):
        assert (out / name).stat().st_size > 1000
    code, _, err = run(program, folder / "none", base=folder)
    assert (code, err.count("\n")) == (1, 1)
    assert "config.json" in err
    assert not (folder / "none").exists()


@pytest.mark.slow
def test_all_strategies_with_tuning(program, tmp_path):
    code, _, err = run(program, tmp_path / "all", strategies="all", limit=8, tune=8, num_samples=4)
    assert code == 0, err
    rows = json.loads((tmp_path / "all" / "table.json").read_text())["rows"]
    from caspo_jax.evaluation.strategies import STRATEGIES

    assert {r["strategy"] for r in rows} == set(STRATEGIES)
    settings = json.loads((tmp_path / "all" / "settings.graph.json").read_text())
    assert {t["strategy"] for t in settings["trials"]} >= {
        "self_consistency",
        "sequence_vote",
        "cat",
        "cat_paper",
    }
    assert run(program, tmp_path / "all", strategies="all", limit=8, tune=8, num_samples=4)[0] == 0


@pytest.mark.slow
def test_killed_for_real_and_resumed(tmp_path):
    flags = {"model": TASK.policy_path, "benchmarks": "graph", "strategies": "greedy,sequence_vote,beam,cat"}
    flags |= SMALL | {"limit": 32, "group": 8, "tune": 8}

    def start(out):
        words = [f"--{name}={value}" for name, value in (flags | {"out_dir": out}).items()]
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.evaluate", *words],
            cwd=README.parents[1],
            stdout=subprocess.DEVNULL,
        )

    assert start(tmp_path / "whole").wait() == 0
    groups, kills = tmp_path / "killed" / "groups.jsonl.partial", 0
    while not (tmp_path / "killed" / "groups.jsonl").exists():
        before = groups.read_bytes().count(b"\n") if groups.exists() else 0
        run = start(tmp_path / "killed")
        while run.poll() is None:
            time.sleep(0.01)
            if kills < 3 and groups.exists() and groups.read_bytes().count(b"\n") > before:
                run.kill()
                kills += run.wait() == -signal.SIGKILL
        assert kills <= 3
        assert run.returncode in (0, -signal.SIGKILL)
    assert kills == 3
    one, other = (sorted(map(tuple, figures(tmp_path / name))) for name in ("whole", "killed"))
    assert one == other


def test_outputs_without_room_for_their_answer_are_counted(program, tmp_path):
    """They count as wrong, and the accuracy alone does not tell why."""
    short = {"strategies": "greedy", "limit": 3, "max_new_tokens": 4}
    code, said, _ = run(program, tmp_path / "short", **short)
    assert code == 0
    assert said.split("cut at the limit")[1].split() == ["3"]
