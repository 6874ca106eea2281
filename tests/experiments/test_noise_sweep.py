"""Label noise reaches the annotations and the manifests, and the sweep plots what becomes of it."""

import json
import os

import pytest

from caspo_jax.errors import UserError
from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from experiments.noise_sweep import share_traces
from tests.experiments.conftest import read
from tests.experiments.test_rounds import TRAIN

TASK = get_task("graph")


def test_caspo_with_label_noise(program, write, tmp_path):
    questions = write("q.jsonl", [question_to_record(q) for q in TASK.questions("train", 6, seed=3)])
    flags = {
        "model": TASK.policy_path,
        "input": questions,
        "num_samples": 4,
        "max_new_tokens": 128,
        "batch_size": 64,
        "rounds": 1,
    }
    flags |= TRAIN | {"train.max_steps": 1, "label_noise": 0.25, "seed": 2}
    code, _, err = program("caspo", out_dir=tmp_path / "run", **flags)
    assert code == 0, err
    folder = tmp_path / "run" / "round_1"
    manifest = json.loads((folder / "annotated.jsonl.manifest.json").read_text())
    assert manifest["config"]["verifier"] == "exact:graph+noise:0.25/2"
    pairs = json.loads((folder / "pairs.jsonl.manifest.json").read_text())
    assert pairs["config"]["verifier"] == "exact:graph+noise:0.25/2"
    from caspo_jax.records import trace_from_record
    from caspo_jax.steps import verify_traces

    noisy = [trace_from_record(r) for r in read(folder / "annotated.jsonl")]
    exact = verify_traces(noisy, TASK.verifier())
    judged = [
        (a.verdict, b.verdict)
        for x, y in zip(noisy, exact)
        for a, b in zip(x.steps, y.steps)
        if b.verdict != "unknown"
    ]
    assert sum(a != b for a, b in judged) / len(judged) == pytest.approx(0.25, abs=0.12)
    code, _, err = program("caspo", out_dir=tmp_path / "run", **(flags | {"label_noise": 0.1}))
    assert code == 1
    assert "label_noise: 0.25 then, 0.1 now" in err
    for bad in ("noise=2", "noise=x"):
        name, value = bad.split("=")
        code, _, err = program("noise_sweep", out_dir=tmp_path / "sweep", **{name: value})
        assert code == 1
        assert "shares between 0 and 1" in err


def test_traces_are_shared_and_nobody_s_are_replaced(tmp_path):
    first, other = tmp_path / "noise_0" / "round_1", tmp_path / "noise_0.4" / "round_1"
    first.mkdir(parents=True)
    (first / "traces.jsonl").write_text("mine")
    share_traces(first, first, overwrite=False)  # onto itself: left to the round, which refuses it
    assert os.listdir(first) == ["traces.jsonl"]
    manifest = first / "traces.jsonl.manifest.json"
    manifest.write_text("{}")
    other.mkdir(parents=True)
    (other / "traces.jsonl").write_text("somebody's")
    with pytest.raises(UserError, match="no manifest beside it"):
        share_traces(first, other, overwrite=False)
    assert (other / "traces.jsonl").read_text() == "somebody's"
    share_traces(first, other, overwrite=True)
    assert {p.name: p.read_text() for p in other.iterdir()} == {"traces.jsonl": "mine", manifest.name: "{}"}
    (other / "traces.jsonl").write_text("begun")
    share_traces(first, other, overwrite=True)  # a manifest knows them
    assert (other / "traces.jsonl").read_text() == "begun"


@pytest.mark.slow
def test_sweep(program, tmp_path):
    flags = {"noise": "0,0.3", "train_questions": 24, "eval_questions": 24, "batch_size": 256}
    code, _, err = program("noise_sweep", out_dir=tmp_path / "sweep", **flags)
    assert code == 0, err
    found = json.loads((tmp_path / "sweep" / "noise.json").read_text())
    assert {row["noise"] for row in found["rows"]} == {0.0, 0.3}
    assert (tmp_path / "sweep" / "noise.png").stat().st_size > 1000
    before = (tmp_path / "sweep" / "noise.json").read_bytes()
    assert program("noise_sweep", out_dir=tmp_path / "sweep", **flags)[0] == 0
    assert (tmp_path / "sweep" / "noise.json").read_bytes() == before
