"""A whole round through its programs, on the shipped tiny policy; killed anywhere, it ends with the same files."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from tests.experiments.conftest import read

TASK = get_task("graph")
SMALL = {"num_samples": 4, "max_new_tokens": 128, "batch_size": 64, "rounds": 1, "preset": "caspo"}
TRAIN = {
    "train.learning_rate": 1e-3,
    "train.batch_size": 8,
    "train.min_length": 64,
    "train.tensorboard": "false",
}


@pytest.fixture
def questions(write):
    return write("questions.jsonl", [question_to_record(q) for q in TASK.questions("train", 12, seed=3)])


def test_caspo_makes_pairs_trains_and_exports(program, questions, tmp_path):
    from caspo_jax.models import load_pretrained

    run = tmp_path / "run"
    flags = {"model": TASK.policy_path, "input": questions, "out_dir": run, **SMALL, **TRAIN}
    code, out, err = program("caspo", **flags)
    assert code == 0, err
    assert "1 round in" in out
    folder = run / "round_1"
    traces, annotated, pairs = (read(folder / f"{n}.jsonl") for n in ("traces", "annotated", "pairs"))
    assert len(traces) == len(annotated) == 48
    verdicts = {step["verdict"] for trace in annotated for step in trace["steps"]}
    assert verdicts <= {"correct", "wrong", "unknown"}
    assert {"correct", "wrong"} <= verdicts
    verifier = TASK.verifier()
    assert pairs
    assert len(
        {
            (tuple(p["prefix_ids"]), tuple(p["chosen_ids"]), tuple(p["rejected_ids"]), p["prompt"])
            for p in pairs
        }
    ) == len(pairs)
    _assert_pairs_hold(pairs, verifier)
    before, _ = load_pretrained(TASK.policy_path)
    after, _ = load_pretrained(folder / "policy")
    assert float(np.abs(np.asarray(before.embed[...]) - np.asarray(after.embed[...])).max()) > 1e-6
    written = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert program("caspo", **flags)[0] == 0
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == written


def _assert_pairs_hold(pairs, verifier):
    """Chosen steps verify, rejected ones do not, and their prefixes are all right."""
    from caspo_jax.steps import VerifyItem
    from caspo_jax.types import Question

    for pair in pairs:
        question = Question(id="q", question=pair["prompt"])
        chosen = VerifyItem(question, pair["prefix"], pair["chosen"], pair["ends_trace"][0])
        rejected = VerifyItem(question, pair["prefix"], pair["rejected"], pair["ends_trace"][1])
        assert verifier.verify([chosen, rejected]) == ["correct", "wrong"], pair
        steps = [s for s in pair["prefix"].split("\n\n") if s.strip()]
        for i, step in enumerate(steps):
            prefix = "".join(f"{s}\n\n" for s in steps[:i])
            assert verifier.verify([VerifyItem(question, prefix, step, False)]) == ["correct"]


def test_stages_one_by_one(program, questions, tmp_path):
    model = TASK.policy_path
    paths = {n: tmp_path / f"{n}.jsonl" for n in ("traces", "annotated", "pairs", "trl", "scores", "cat")}
    steps = [
        (
            "generate",
            {"input": questions, "output": paths["traces"], "num_samples": 4, "max_new_tokens": 128},
        ),
        (
            "annotate",
            {"input": paths["traces"], "output": paths["annotated"], "dataset_dir": tmp_path / "dataset"},
        ),
        ("pairs", {"input": paths["annotated"], "output": paths["pairs"], "trl_output": paths["trl"]}),
        (
            "train",
            {
                "pairs_file": paths["pairs"],
                "annotated": paths["annotated"],
                "out_dir": tmp_path / "run",
                **TRAIN,
            }
            | {"train.max_steps": 2, "log_json": "true"},
        ),
        ("export", {"run": tmp_path / "run", "output": tmp_path / "policy"}),
        ("score", {"input": paths["traces"], "output": paths["scores"]}),
    ]
    said = {}
    for name, flags in steps:
        code, said[name], err = program(name, model=model, **flags)
        assert code == 0, (name, err)
    read_pairs, *progress, summary = map(json.loads, said["train"].splitlines())
    assert (read_pairs["total"], read_pairs["reading"]) == (None, f"{summary['pairs']} pairs")
    passed = [u for u in progress if "reference" in u]  # before the first update
    updates = progress[len(passed) :]
    assert progress[: len(passed)] == passed
    assert {(u["done"], u["total"]) for u in passed} == {(0, 2)}
    done, _, total, _ = passed[-1]["reference"].split()
    assert done == total
    assert [(u["event"], u["done"], u["total"]) for u in updates] == [("progress", 1, 2), ("progress", 2, 2)]
    assert all({"loss", "margin", "chosen", "seconds"} <= set(u) for u in updates)
    assert (summary["event"], summary["updates"]) == ("summary", 2)
    assert {"prompt", "chosen", "rejected"} <= set(read(paths["trl"])[0])
    for trace, score in zip(read(paths["traces"]), read(paths["scores"]), strict=True):
        assert trace["id"] == score["id"]
        np.testing.assert_allclose(trace["logprob"], score["logprob"], atol=1e-4)
        np.testing.assert_allclose(trace["entropy"], score["entropy"], atol=1e-4)
    import datasets

    rows = datasets.load_dataset(str(tmp_path / "dataset"), split="train")
    assert len(rows) == sum(len(t["steps"]) for t in read(paths["annotated"]))
    # The exported policy answers, by tree search, and its caspo.json came along.
    assert json.loads((tmp_path / "policy" / "caspo.json").read_text())["task"] == "graph"
    code, _, err = program(
        "generate",
        model=tmp_path / "policy",
        input=questions,
        output=paths["cat"],
        strategy="cat",
        num_branches=3,
        threshold=0.5,
        trees=tmp_path / "trees.jsonl",
        max_new_tokens=128,
    )
    assert code == 0, err
    assert len(read(f"{paths['cat']}.answers.jsonl")) == 12
    for file in tmp_path.rglob("*.jsonl"):  # every record says what it is
        assert all(set(record["schema"]) == {"name", "version"} for record in read(file)), file
    tree = read(tmp_path / "trees.jsonl")[0]
    assert len(tree["parent"]) == len(tree["status"]) == len(tree["token_ids"])
    for searched, voted in zip(
        read(tmp_path / "trees.jsonl"), read(f"{paths['cat']}.answers.jsonl"), strict=True
    ):
        assert [searched[field] for field in ("id", "answer", "votes")] == [
            voted[field] for field in ("id", "answer", "votes")
        ]


def refused(result, *words):
    code, _, err = result
    assert code == 1, err
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err


def test_another_judge_or_kind_of_answer_is_refused(program, write, tmp_path):
    model = TASK.policy_path
    questions = write("questions.jsonl", [question_to_record(q) for q in TASK.questions("train", 3, seed=3)])
    traces, annotated, pairs = (tmp_path / f"{n}.jsonl" for n in ("traces", "annotated", "pairs"))
    drawn = {"model": model, "input": questions, "output": traces, "num_samples": 2, "max_new_tokens": 64}
    assert program("generate", **drawn)[0] == 0
    refused(program("generate", **drawn, answers="letter"), "answers: 'task' then, 'letter' now")
    judged = {"model": model, "input": traces, "output": annotated, "verifier": "rollouts", "rollouts": 2}
    assert program("annotate", **judged)[0] == 0
    written = annotated.read_bytes()
    for change, word in (
        ({"rollouts": 3}, "verifier_settings.n: 2 then, 3 now"),
        ({"rollout_threshold": 0.5}, "verifier_settings.threshold"),
        ({"seed": 5}, "verifier_settings.seed"),
        ({"answers": "integer"}, "answers: 'task' then"),
    ):
        refused(program("annotate", **(judged | change)), word)
    assert program("annotate", **judged)[0] == 0
    assert annotated.read_bytes() == written
    ids = [trace["id"] for trace in read(traces)]
    paths = [write(f"{v}.jsonl", [{"id": i, "verdicts": [v]} for i in ids]) for v in ("correct", "wrong")]
    paired = {"model": model, "input": annotated, "output": pairs, "verifier": "labels"}
    assert program("pairs", **paired, labels=paths[0])[0] == 0
    refused(program("pairs", **paired, labels=paths[1]), "verifier_settings.labels")
    refused(program("pairs", **paired, labels=paths[0], dtype="bfloat16"), "dtype")
    assert program("pairs", **paired, labels=paths[0])[0] == 0


@pytest.mark.parametrize("name", ["entrpy", "max_prob", "margin", "deepconf", "self_certainty"])
def test_a_confidence_that_traces_cannot_give_is_refused_before_anything(
    program, write, questions, tmp_path, name
):
    line = {"id": "a", "question": "?", "token_ids": [5], "text": "x", "finish_reason": "eos"}
    usable = "entropy, max_entropy, tail_entropy, first_token, normalised, mean_logprob, sum_logprob"
    for program_name, flags in (
        ("caspo", {"input": questions, "out_dir": tmp_path / "run"}),
        ("annotate", {"input": write("t.jsonl", [line]), "output": tmp_path / "a.jsonl"}),
    ):
        found = program(program_name, model=TASK.policy_path, confidence=name, **flags)
        refused(found, f"--confidence={name}", f"choose from {usable}\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["questions.jsonl", "t.jsonl"]


def test_settings_that_cannot_work_do_not_begin_an_output(program, write, questions, tmp_path):
    line = {"id": "a", "question": "?", "token_ids": [5], "text": '"', "finish_reason": "eos"}
    given = {"model": TASK.policy_path, "input": write("t.jsonl", [line | {"logprob": [-0.5]}])}
    refused(program("annotate", **given, output=tmp_path / "a.jsonl"), "'a'", "confidence=entropy")
    for name in ("annotate", "pairs"):
        refused(program(name, **given, output=tmp_path / "a.jsonl", step_delimiter=""), "step_delimiter")
    refused(program("pairs", **given, output=tmp_path / "a.jsonl", verifier="rollouts"), "no gold answer")
    flags = {"model": TASK.policy_path, "input": questions, "out_dir": tmp_path / "run"}
    refused(program("caspo", "--temperatures=0.7", "--temperatures=-1", **flags), "temperature=-1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["questions.jsonl", "t.jsonl"]


@pytest.mark.ci
def test_rounds_cut_steps_as_told_and_hold_one_policy_at_a_time(program, questions, tmp_path, monkeypatch):
    from caspo_jax.training import rounds
    from caspo_jax.training.stages import policy

    embed = (432, 96)
    held = []

    def load(path, **options):
        held.append(sum(a.shape == embed for a in jax.live_arrays()))
        return load_pretrained(path, **options)

    load_pretrained = policy.load_pretrained
    monkeypatch.setattr(policy, "load_pretrained", load)
    monkeypatch.setattr(rounds, "train_stage", lambda *args, **options: None)
    monkeypatch.setattr(rounds, "export_stage", lambda *args, **options: Path(TASK.policy_path))
    gc.collect()  # of what earlier tests left
    before = sum(a.shape == embed for a in jax.live_arrays())
    flags = {"model": TASK.policy_path, "input": questions, "out_dir": tmp_path / "run", **SMALL, **TRAIN}
    flags |= {"rounds": 2, "max_new_tokens": 64, "verifier": "rollouts", "rollouts": 1, "step_delimiter": ";"}
    code, _, err = program("caspo", **flags)
    assert code == 0, err
    assert held == [before, before]
    for folder in (tmp_path / "run" / "round_1", tmp_path / "run" / "round_2"):
        for name, key in (("traces", None), ("annotated", "delimiter"), ("pairs", "delimiter")):
            config = json.loads((folder / f"{name}.jsonl.manifest.json").read_text())["config"]
            assert (config[key] if key else config["sampling"]["step_delimiter"]) == ";"
        assert any("\n\n" in step["text"] for t in read(folder / "annotated.jsonl") for step in t["steps"])


# What exists when each stage is under way.
MOMENTS = (
    "traces.jsonl.partial",
    "traces.jsonl",
    "annotated.jsonl.partial",
    "annotated.jsonl",
    "pairs.jsonl.manifest.json",
    "pairs.jsonl",
    "train/run.json",
    "train/checkpoints",
    "policy",
)


@pytest.mark.slow
def test_killed_in_every_stage_ends_with_the_same_files(questions, tmp_path):
    def command(run: Path) -> list[str]:
        given = {
            "model": TASK.policy_path,
            "input": questions,
            "out_dir": run,
            **SMALL,
            **TRAIN,
            "train.save_every": 2,
        }
        return [sys.executable, "-m", "experiments.caspo", *(f"--{k}={v}" for k, v in given.items())]

    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, env=environment)
    for moment in MOMENTS:
        process = subprocess.Popen(command(killed), env=environment, start_new_session=True)
        while process.poll() is None and not (killed / "round_1" / moment).exists():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
    subprocess.run(command(killed), check=True, env=environment)
    for name in (
        "traces.jsonl",
        "annotated.jsonl",
        "pairs.jsonl",
        "policy/model.safetensors",
        "policy/config.json",
    ):
        assert (whole / "round_1" / name).read_bytes() == (killed / "round_1" / name).read_bytes(), name
    metrics = [
        [{k: v for k, v in r.items() if "second" not in k} for r in read(f / "round_1/train/metrics.jsonl")]
        for f in (whole, killed)
    ]
    assert metrics[0] == metrics[1]
