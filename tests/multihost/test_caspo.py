"""A whole round by two processes: the same pairs and policy as by one, also when one of them is killed in between."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from processes import start
from test_two_processes import ends, free_port

from caspo_jax.records import question_to_record
from caspo_jax.store import write_jsonl
from caspo_jax.tasks import get_task

pytestmark = pytest.mark.slow
TASK = get_task("graph")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    write_jsonl(path, map(question_to_record, TASK.questions("train", 12, seed=3)))
    return path


def caspo(questions, out, *more, devices):
    flags = {
        "model": TASK.policy_path,
        "input": questions,
        "out_dir": out,
        "dtype": "float32",
        "num_samples": 4,
        "max_new_tokens": 128,
        "rounds": 1,
        "quiet": True,
        "train.learning_rate": 1e-3,
        "train.eps": 1e-4,
        "train.batch_size": 8,
        "train.min_length": 64,
        "train.tensorboard": False,
    }
    given = (f"--{name}={value}" for name, value in flags.items())
    return start("-m", "experiments.caspo", *given, *more, devices=devices)


def two(questions, out):
    shared = ("--mesh=data:2,fsdp:2,tensor:2", f"--coordinator_address=127.0.0.1:{free_port()}")
    return [
        caspo(questions, out, *shared, "--num_processes=2", f"--process_id={i}", devices=4) for i in range(2)
    ]


def pairs(out):
    """Without what is measured: confidences differ in their last bits."""
    lines = (out / "round_1/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if "confidence" not in k} for line in lines]


def parameters(out):
    from caspo_jax.models import load_pretrained

    model, _ = load_pretrained(out / "round_1/policy")
    return np.asarray(model.embed[...]), np.asarray(model.layers.q[...])


@pytest.fixture(scope="module")
def alone(questions, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    ((code, err),) = ends([caspo(questions, out, devices=1)], 1200)
    assert code == 0, err[-4000:]
    return out


def test_two_processes_make_the_round_of_one(questions, alone, tmp_path):
    for code, err in ends(two(questions, tmp_path / "run"), 1200):
        assert code == 0, err[-4000:]
    assert pairs(tmp_path / "run") == pairs(alone)
    for found, want in zip(parameters(tmp_path / "run"), parameters(alone), strict=True):
        np.testing.assert_allclose(found, want, atol=2e-4)


def test_one_is_killed_and_both_go_on(questions, alone, tmp_path):
    run = tmp_path / "run"
    processes = two(questions, run)
    deadline = time.monotonic() + 1200
    while not (run / "round_1/pairs.jsonl").exists():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.2)
    processes[1].kill()
    ((code, err),) = ends(processes[:1], 60)
    assert code == 1
    assert "process 1" in err
    for code, err in ends(two(questions, run), 1200):
        assert code == 0, err[-4000:]
    assert pairs(run) == pairs(alone)
    for found, want in zip(parameters(run), parameters(alone), strict=True):
        np.testing.assert_allclose(found, want, atol=2e-4)
