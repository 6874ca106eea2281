"""`evaluate`, `calibrate` and `audit` on the shipped tiny policy: figures recomputed from records, kills, comparisons."""

import dataclasses
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks import get_benchmark
from caspo_jax.models import RopeConfig
from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from caspo_jax.types import Question
from experiments import benchmark_source, evaluate_settings
from experiments.evaluate import joined
from experiments.evaluate_run import even_groups
from experiments.evaluate_settings import restored
from tests.experiments.conftest import read
from tests.experiments.test_bad_input import one_line
from tests.shapes import small_shape

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
    # A sample's own record and its answer agree; votes cost what their samples cost.
    spent = {}
    for s in samples:
        spent.setdefault(s["question"], []).append(s["tokens"])
    for r in records:
        if (r["strategy"], r["size"]) == ("self_consistency", "4"):
            assert r["tokens"] == sum(spent[r["question"]])
            assert r["calls"] == 1 + max(spent[r["question"]])


@pytest.mark.parametrize("torn", [0.3, 0.75])
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
    for name in ("table.json", "paired.json"):
        (killed / name).unlink()
    code, _, err = run(program, killed)
    assert code == 0, err
    assert sorted(map(tuple, figures(killed))) == sorted(map(tuple, figures(whole)))
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
    assert "equal" in out
    rows = json.loads((folder / "compared" / "compare.json").read_text())["rows"]
    assert all(row["difference"] == 0 and row["verdict"] == "equal" for row in rows)
    assert program("evaluate", compare=str(whole))[0] == 1


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


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("", "no questions"),
        ('{"id": "a", "question": "x"}', "no gold answer"),
        ('{"id": "a", "gold": "1"}', "questions.jsonl:1"),
        ("{", "questions.jsonl:1"),
    ],
)
@pytest.mark.parametrize("name", ["evaluate", "calibrate", "audit"])
def test_bad_questions_are_one_line(program, tmp_path, name, line, word):
    path = tmp_path / "questions.jsonl"
    path.write_text(line)
    flags = {"model": TASK.policy_path, "input": path}
    flags |= {"output": tmp_path / "cal.json"} if name == "calibrate" else {"out_dir": tmp_path / "out"}
    code, _, err = program(name, **flags)
    assert (code, err.count("\n")) == (1, 1)
    assert word in err


def test_bad_traces_answers_and_alpha(program, tmp_path):
    model = TASK.policy_path
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "answers.jsonl").write_text('{"benchmark": "graph"}\n')
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "answers.jsonl.partial").write_text("")
    good = {"model": model, "out_dir": tmp_path / "out"}
    for name, flags, word in (
        ("evaluate", good | {"traces": tmp_path / "empty.jsonl"}, "no traces"),
        ("evaluate", good | {"traces": tmp_path / "nowhere.jsonl"}, "nowhere.jsonl"),
        ("evaluate", {"compare": f"{tmp_path / 'unfinished'},{tmp_path}"}, "has not ended"),
        ("evaluate", {"compare": f"{tmp_path / 'nowhere'},{tmp_path}"}, "nowhere"),
        ("evaluate", {"compare": f"{tmp_path},{tmp_path}"}, "answers.jsonl:1"),
        ("evaluate", good | {"benchmarks": "graph", "cat_sizes": "2,many"}, "--cat_sizes=2,many"),
        ("evaluate", good | {"benchmarks": "graph", "cat_sizes": "0"}, "--cat_sizes=0"),
        ("evaluate", good | {"benchmarks": "graph", "temperature": 0}, "--temperature=0"),
        (
            "calibrate",
            {"model": model, "input": tmp_path, "output": tmp_path / "c.json", "alpha": 0},
            "--alpha=0",
        ),
        ("audit", good | {"input": tmp_path, "calibration": tmp_path / "answers.jsonl"}, "answers.jsonl"),
    ):
        code, _, err = program(name, **flags)
        assert (code, err.count("\n")) == (1, 1), err
        assert word in err


@pytest.mark.parametrize(
    "rope, room",
    [(RopeConfig(), 44), (RopeConfig("yarn", factor=4.0, original_max_position_embeddings=64), 236)],
)
def test_the_default_length_is_half_of_what_the_context_leaves_and_is_said(monkeypatch, capsys, rope, room):
    monkeypatch.setattr(evaluate_settings, "FLAGS", types.SimpleNamespace(max_new_tokens=None))
    config = small_shape(max_position_embeddings=64, rope=rope)
    policy = types.SimpleNamespace(tokenizer=None, model=types.SimpleNamespace(config=config))
    found = evaluate_settings.length(policy, [Question("q", prompt_ids=(1,) * 20)])
    assert found == {"max_new_tokens": room // 2}
    assert (
        f"--max_new_tokens={room // 2}, as none is given: half of the {room} tokens"
        in capsys.readouterr().out
    )


def test_bad_flags(program, tmp_path):
    for flags, word in (
        ({}, "--model"),
        ({"model": TASK.policy_path}, "--out_dir"),
        ({"model": TASK.policy_path, "out_dir": tmp_path}, "--benchmarks"),
        (
            {"model": TASK.policy_path, "out_dir": tmp_path, "benchmarks": "graph", "strategies": "nothing"},
            "nothing",
        ),
        ({"model": TASK.policy_path, "out_dir": tmp_path, "benchmarks": "nowhere"}, "nowhere"),
    ):
        code, _, err = program("evaluate", **flags)
        assert code == 1
        assert word in err
        assert err.count("\n") == 1


def test_settings_are_chosen_as_the_benchmark_asks_and_scores(monkeypatch):
    asked = Question("a", "What is half of one?", gold=r"\frac{1}{2}")
    monkeypatch.setattr(benchmark_source.common, "load_questions", lambda path, need_gold: [asked] * 3)
    math = get_benchmark("math500")
    tune = benchmark_source.TuneBenchmark(math, "tune.jsonl")
    (question, _) = tune.load(limit=2)
    assert tune.prompt(question) == math.prompt(asked) != asked.question
    assert tune.extract(r"It is \boxed{0.5}.") == "0.5"
    assert tune.score("0.5", question) is True
    assert tune.equal("0.5", "1/2")
    choices = benchmark_source.TuneBenchmark(get_benchmark("race"), "tune.jsonl")
    with pytest.raises(UserError, match=r"tune\.jsonl: question 'a' has no field 'options'"):
        choices.prompt(asked)


def test_even_groups_and_compare_arguments():
    assert [len(g) for g in even_groups(list(range(200)), 128)] == [100, 100]
    assert [len(g) for g in even_groups(list(range(5)), 8)] == [5]
    assert joined(["evaluate", "--compare", "a", "b", "--quiet"]) == ["evaluate", "--compare=a,b", "--quiet"]
    assert joined(["evaluate", "--compare=a,b"]) == ["evaluate", "--compare=a,b"]


def test_settings_come_back_from_their_file():
    from caspo_jax.evaluation.strategies import Settings
    from caspo_jax.sampling import CatConfig, SampleConfig

    made = Settings(
        samples=3, beams=((1, 2),), cat=CatConfig(threshold=0.3, sample=SampleConfig(stop=("x",)))
    )
    assert restored(Settings(), json.loads(json.dumps(dataclasses.asdict(made)))) == made


@pytest.fixture
def held_out(write):
    return write("held_out.jsonl", [question_to_record(q) for q in TASK.questions("tune", 24, seed=5)])


def test_calibrate_generate_and_audit(program, held_out, tmp_path):
    model = TASK.policy_path
    shared = {"model": model, "input": held_out, "batch_size": 96, "max_new_tokens": 64}
    code, out, err = program("calibrate", output=tmp_path / "cal.json", num_branches=3, alpha=0.2, **shared)
    assert code == 0, err
    calibration = json.loads((tmp_path / "cal.json").read_text())
    trees = read(tmp_path / "cal.json.trees.jsonl")
    traces = read(tmp_path / "cal.json.traces.jsonl")
    assert len(traces) == 24 * 3
    # The score of each question, straight from the records: the last step's confidence at every closed node.
    scores = []
    for tree in trees:
        mine = [t for t in traces if t["id"].rpartition("/")[0] == tree["question_id"]]
        leaves = [i for i, s in enumerate(tree["status"]) if s == "finished"]
        best = -math.inf
        for leaf, trace in zip(leaves, mine, strict=True):
            node, low = tree["parent"][leaf], math.inf
            while node >= 0:
                low = min(low, tree["confidence"][node])
                node = tree["parent"][node]
            best = max(best, low) if trace["correct"] else best
        scores += [best] if best > -math.inf else []
    k = math.floor(0.2 * (len(scores) + 1))
    assert calibration["answerable"] == len(scores)
    assert calibration["rank"] == k
    assert calibration["threshold"] == sorted(scores)[k - 1]

    cat = {
        "model": model,
        "input": held_out,
        "strategy": "cat",
        "calibration": tmp_path / "cal.json",
        "batch_size": 96,
    }
    code, out, err = program(
        "generate", output=tmp_path / "cat.jsonl", trees=tmp_path / "trees.jsonl", expand=1, **cat
    )
    assert code == 0, err
    assert "outside" not in out
    pruned = read(tmp_path / "trees.jsonl")
    assert pruned[0]["threshold"] == pytest.approx(calibration["threshold"])
    assert any("pruned" in t["status"] for t in pruned)
    # What finishes under pruning are paths of the unpruned sample, and the promise counts the same losses.
    plain = {tuple(t["token_ids"]) for t in traces}
    assert all(tuple(t["token_ids"]) in plain for t in read(tmp_path / "cat.jsonl"))
    for flags, word in (
        ({"threshold": 0.5}, "--threshold"),
        ({"temperature": 1.0}, "temperature"),
        ({"num_branches": 5}, "branches"),
        ({"strategy": "sample"}, "--strategy=cat"),
    ):
        code, _, err = program("generate", output=tmp_path / "x.jsonl", **(cat | flags))
        assert code == 1
        assert word in err

    code, out, err = program("audit", out_dir=tmp_path / "audit", calibration=tmp_path / "cal.json", **shared)
    assert code == 0, err
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())
    lost = np.mean(np.array(scores) < calibration["threshold"])
    assert audit["chosen"]["lost"] <= lost + 1e-12  # a question's last branch is never pruned
    assert audit["sweep"][0]["pruned"] == 0
    assert audit["oracle"]["accuracy"] == pytest.approx(len(scores) / 24)
    assert audit["schema"] == {"name": "audit", "version": 1}
    for flags, word in (({"threshold": 0.5}, "--threshold"), ({"alpha": 0}, "--alpha=0")):
        code, _, err = program("calibrate", output=tmp_path / "y.json", **shared, **flags)
        assert code == 1
        assert word in err


def test_an_audit_replaces_its_own_files_alone(program, held_out, tmp_path):
    out = tmp_path / "audit"
    flags = {"model": TASK.policy_path, "input": held_out, "out_dir": out, "num_branches": 2}
    flags |= {"batch_size": 96, "max_new_tokens": 32, "threshold": 0.5}
    out.mkdir()
    (out / "sweep.csv").write_text("mine")
    one_line(program("audit", **flags), "sweep.csv", "--overwrite")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("sweep.csv", "mine")]
    assert program("audit", **flags, overwrite="true")[0] == 0
    sampled, written = ((out / name).read_bytes() for name in ("unpruned.traces.jsonl", "audit.json"))
    assert program("audit", **flags)[0] == 0  # its own now
    flags["threshold"] = 0.7
    one_line(program("audit", **flags), "threshold: 0.5 then, 0.7 now")
    assert (out / "audit.json").read_bytes() == written
    assert program("audit", **flags, overwrite="true")[0] == 0
    assert json.loads((out / "audit.json").read_text())["threshold"] == 0.7
    assert (out / "unpruned.traces.jsonl").read_bytes() == sampled  # taken up, whatever the threshold


def test_confidence_table_of_traces(program, held_out, tmp_path):
    model = TASK.policy_path
    shared = {"model": model, "input": held_out, "batch_size": 96, "max_new_tokens": 64}
    code, _, err = program("calibrate", output=tmp_path / "cal.json", num_branches=3, alpha=0.2, **shared)
    assert code == 0, err
    code, _, err = program(
        "annotate", model=model, input=tmp_path / "cal.json.traces.jsonl", output=tmp_path / "a.jsonl"
    )
    assert code == 0, err
    code, out, err = program("evaluate", model=model, traces=tmp_path / "a.jsonl", out_dir=tmp_path / "table")
    assert code == 0, err
    assert "steps:" in out
    rows = {
        r["confidence"]: r
        for r in json.loads((tmp_path / "table" / "confidences.steps.json").read_text())["rows"]
    }
    assert len(rows) == 12
    assert rows["entropy"]["auroc"] > 0.6
    recorded = [(s["confidence"], s["verdict"] == "correct") for t in read(tmp_path / "a.jsonl") for s in t["steps"] if s["verdict"] != "unknown"]  # fmt: skip
    from sklearn.metrics import roc_auc_score

    assert rows["entropy"]["auroc"] == pytest.approx(
        roc_auc_score([r for _, r in recorded], [c for c, _ in recorded]), abs=1e-3
    )
    paths = json.loads((tmp_path / "table" / "confidences.paths.json").read_text())["rows"]
    assert len(paths) == 45
    changed = [t | {"policy": "0" * 16} for t in read(tmp_path / "a.jsonl")]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(t) + "\n" for t in changed))
    code, _, err = program("evaluate", model=model, traces=tmp_path / "other.jsonl", out_dir=tmp_path / "x")
    assert code == 1
    assert "was written by policy" in err


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
