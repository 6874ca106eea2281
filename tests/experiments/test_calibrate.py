"""`calibrate`, what goes by its threshold, and `audit`, on the shipped tiny policy."""

import dataclasses
import json
import math
import re
import types

import numpy as np
import pytest
from absl import flags as absl_flags

from caspo_jax.evaluation import audit
from caspo_jax.evaluation.thresholds import conformal_threshold
from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from caspo_jax.types import Trace
from experiments import calibrate, calibrations, generate
from experiments.audit import seen_before
from experiments.escapes import unescaped
from tests.experiments.conftest import read
from tests.experiments.test_bad_input import one_line

TASK = get_task("graph")


@pytest.mark.parametrize("weighed", [True, False])
def test_of_a_sampled_path_only_what_is_read_is_kept(weighed):
    path = Trace("q/0", "q", "7", None, (1, 2), (3, 4), "7", "eos", "7", True, logprob=(-0.1, -0.2))
    path = dataclasses.replace(path, entropy=(0.1, 0.2), path_confidence=0.5)
    kept = calibrate.lean(path, weighed)
    assert (kept.id, kept.answer, kept.correct, kept.path_confidence) == ("q/0", "7", True, 0.5)
    assert (kept.text, kept.entropy, kept.prompt_ids) == ("", None, ())
    assert (kept.token_ids, kept.logprob) == ((path.token_ids, path.logprob) if weighed else ((), None))
    assert audit.voted_right([kept], "sequence", 1.0) == weighed
    assert audit.voted_right([kept], "confidence", 1.0)


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
    assert audit["guarantee"]["calibration_questions"] == 24
    assert "24 of these 24: the 97.5 % point and the promise are for new questions only" in out
    assert len(calibration["prompts"]) == 24
    for flags, word in (
        ({"threshold": 0.5}, "--threshold"),
        ({"alpha": 0}, "--alpha=0"),
        ({"alpha": 1}, "--alpha=1"),
    ):
        code, _, err = program("calibrate", output=tmp_path / "y.json", **shared, **flags)
        assert code == 1
        assert word in err


@pytest.mark.parametrize("alpha", [0.5, 0.3, 0.25, 0.1, 0.07])
def test_the_number_of_questions_that_is_asked_for_is_the_least_that_does(monkeypatch, alpha):
    monkeypatch.setattr(calibrate, "FLAGS", types.SimpleNamespace(alpha=alpha))
    none = types.SimpleNamespace(threshold=0.0, rank=0, questions=1, answerable=1)
    said = calibrate.summary(none, np.array([]))["warning"]
    least = int(re.search(r"at least (\d+) questions", said)[1])
    ranks = [conformal_threshold(np.linspace(0.1, 0.9, n), alpha).rank for n in (least - 1, least)]
    assert (ranks[0] == 0, ranks[1] >= 1) == (True, True)


@pytest.mark.parametrize(
    "given, branches",
    [({}, 5), ({"num_branches": 5}, 5), ({"num_branches": 3}, 3), ({"root_branches": 2}, 8)],
)
def test_what_no_flag_says_is_the_calibration_s(program, tmp_path, monkeypatch, given, branches):
    """The number of branches goes with that of the roots: who says one has said both."""
    search = {"branches": 5, "temperature": 0.6, "stop": ["\\n"], "top_k": 7}
    found = types.SimpleNamespace(search=search, instruction=None)
    monkeypatch.setattr("caspo_jax.evaluation.thresholds.Calibration.load", lambda path: found)
    monkeypatch.setattr(generate, "main", lambda: calibrations.load() and None)
    places = {"model": "M", "input": "I", "output": tmp_path / "o", "calibration": "C"}
    code, _, err = program("generate", **places, **given, temperature=0.9)
    assert code == 0, err
    flags = absl_flags.FLAGS
    assert (flags.num_branches, flags.temperature, flags.top_k) == (branches, 0.9, 7)
    assert unescaped("stop", flags.stop[0]) == "\\n"  # a backslash and a letter, as they were


def test_help_says_which_flags_are_refused(program, held_out, tmp_path):
    places = {"calibrate": {"output": tmp_path / "c.json"}, "audit": {"out_dir": tmp_path / "a"}}
    for name, flag in (("calibrate", "threshold"), ("calibrate", "num_samples"), ("audit", "num_samples")):
        given = {"model": TASK.policy_path, "input": held_out, **places[name], flag: 1}
        one_line(program(name, **given), f"--{flag}")
        assert absl_flags.FLAGS[flag].help.startswith("refused here")


def test_an_audit_says_which_questions_the_calibration_knew():
    assert seen_before(0, 24) == {}  # new ones, which the promise is for
    (line,) = seen_before(None, 24).values()  # a file of before they were kept
    assert "not named in its file" in line


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
    # Earlier versions had their manifest beside audit.json.
    manifest = (out / "manifest.json").read_bytes()
    (out / "manifest.json").rename(out / "audit.json.manifest.json")
    one_line(program("audit", **flags | {"seed": 3}), "seed: 0 then, 3 now")
    (out / "manifest.json").rename(out / "audit.json.manifest.json")
    assert program("audit", **flags)[0] == 0
    assert (out / "manifest.json").read_bytes() == manifest
    assert not (out / "audit.json.manifest.json").exists()
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
    again = program(
        "evaluate", model=model, traces=tmp_path / "a.jsonl", out_dir=tmp_path / "table", log_json="true"
    )
    assert again[0] == 0
    last = {e["stage"]: (e["done"], e["total"]) for e in map(json.loads, again[1].splitlines()) if e["event"] == "progress"}  # fmt: skip
    assert last == {"token statistics": (72, 72), "tables": (57, 57), "report.html": (7, 7)}
    changed = [t | {"policy": "0" * 16} for t in read(tmp_path / "a.jsonl")]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(t) + "\n" for t in changed))
    code, _, err = program("evaluate", model=model, traces=tmp_path / "other.jsonl", out_dir=tmp_path / "x")
    assert code == 1
    assert "was written by policy" in err
