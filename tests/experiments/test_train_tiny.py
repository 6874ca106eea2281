"""The tiny policies' trainer: its text, and what passes from one task's policy to another's."""

import random
import shutil

import numpy as np
import pytest

from caspo_jax.models import load_pretrained
from caspo_jax.outputs import read_manifest
from caspo_jax.records import trace_from_record
from caspo_jax.tasks import get_task
from caspo_jax.tasks.tokenizer import build_tokenizer
from experiments import train_tiny
from experiments.train_tiny import with_tokenizer
from experiments.train_tiny_text import Text


def test_another_tokenizer_keeps_the_layers_and_the_rows_of_tokens_that_both_have():
    graph, chain = get_task("graph"), get_task("chain")
    model, old = load_pretrained(graph.policy_path)
    rng = random.Random(0)
    problems = [p for p, _ in zip(chain.problems("pretrain", 0), range(50), strict=False)]
    new = build_tokenizer(f"{p.text} {' '.join(chain.solve(p, rng, dict(chain.mix)))}" for p in problems)
    adopted = with_tokenizer(model, old, new, seed=0)
    before, after = np.asarray(model.embed[...]), np.asarray(adopted.embed[...])
    assert len(after) >= len(new)
    shared = set(old.get_vocab()) & set(new.get_vocab())
    assert len(shared) > 100
    assert set(new.get_vocab()) - shared
    for token in shared:
        np.testing.assert_array_equal(after[new.get_vocab()[token]], before[old.get_vocab()[token]])
    assert len(np.unique(after, axis=0)) == len(after)  # tokens of its own have rows of their own
    for name in ("q", "q_norm", "down"):
        np.testing.assert_array_equal(
            np.asarray(getattr(model.layers, name)[...]), np.asarray(getattr(adopted.layers, name)[...])
        )
    np.testing.assert_array_equal(np.asarray(model.final_norm[...]), np.asarray(adopted.final_norm[...]))


def text_of(task, **settings):
    return Text(
        task=task, **({"second": False, "drill": 0.0, "copying": 0, "batch_size": 4, "seed": 0} | settings)
    )


def test_rows_are_solutions_of_which_all_but_the_prompt_is_learned():
    task = get_task("graph")
    _, tokenizer = load_pretrained(task.policy_path)
    ids, mask = next(text_of(task).batches(tokenizer))
    assert ids.shape == mask.shape
    assert ids.shape[1] % 24 == 0
    for row, learned in zip(ids, mask, strict=True):
        prompt = tokenizer.decode(row[: np.argmax(learned)], skip_special_tokens=True)
        steps = tokenizer.decode(row[learned], skip_special_tokens=True).split("\n\n")
        problem = task.parse(prompt)
        assert all(task.check(problem, steps[:i], step) for i, step in enumerate(steps))
        assert steps[-1] == f"answer: {problem.answer}"


def test_copies_come_first_and_recorded_outputs_replace_what_the_task_writes():
    task = get_task("graph")
    _, tokenizer = load_pretrained(task.policy_path)
    trace = trace_from_record({"id": "a", "prompt_ids": [5, 6, 7], "token_ids": [8, 9], "text": ""})
    batches = text_of(task, second=True, copying=1, traces=(trace,)).batches(tokenizer)
    ids, mask = next(batches)
    for row, learned in zip(ids, mask, strict=True):
        period = np.argmax(learned) - 1
        np.testing.assert_array_equal(row[period:], row[:-period])
    ids, mask = next(batches)
    assert ids[:, :6].tolist() == [[5, 6, 7, 8, 9, 0]] * 4
    assert mask.sum(axis=1).tolist() == [2] * 4
    assert mask[0, 3:5].all()


GRAPH = get_task("graph").policy_path


@pytest.fixture
def no_training(monkeypatch):
    """A program that writes its policy, as it was, without an update."""

    def write(task, folder):
        shutil.copytree(GRAPH, folder)
        return {"parameters": 1}

    monkeypatch.setattr(train_tiny, "_train", write)


@pytest.fixture
def train(program):
    def run(out, **given):
        return program("train_tiny", **({"task": "graph", "init": GRAPH, "out_dir": out, "steps": 1} | given))

    return run


def test_a_policy_that_is_not_its_own_stays_as_it_is(train, tmp_path, no_training):
    theirs = shutil.copytree(GRAPH, tmp_path / "theirs")
    (theirs / "NOTES.md").write_text("mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "NOTES.md").write_text("mine")
    cases = (
        (theirs, {}, "--overwrite"),
        (theirs, {"init": theirs, "overwrite": "true"}, "what is read"),
        (tmp_path, {"init": theirs, "overwrite": "true"}, "what is read"),
        (other, {"overwrite": "true"}, "no checkpoint folder"),
        (tmp_path / "new", {"init": tmp_path / "none"}, "no such folder"),
    )
    for out, given, named in cases:
        code, _, err = train(out, **given)
        assert (code, err.count("\n")) == (1, 1)
        assert named in err
    assert (theirs / "NOTES.md").read_text() == (other / "NOTES.md").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "theirs"]
    assert train(theirs, overwrite="true")[0] == 0
    assert not (theirs / "NOTES.md").exists()
    assert read_manifest(theirs / "manifest.json")["complete"]


def test_a_policy_is_trained_once_with_the_same_settings(train, tmp_path, no_training, monkeypatch):
    whole, out = train_tiny._train, tmp_path / "out"

    def killed(task, folder):
        whole(task, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_tiny, "_train", killed)
    assert train(out)[0] == 130
    assert not out.exists()
    monkeypatch.setattr(train_tiny, "_train", whole)
    assert train(out)[0] == 0
    monkeypatch.setattr(train_tiny, "_train", killed)
    assert train(out)[0] == 0  # there is nothing left to do
    code, _, err = train(out, steps=2)
    assert code == 1
    assert "steps: 1 then, 2 now" in err
    assert train(out, steps=2, overwrite="true")[0] == 130
    monkeypatch.setattr(train_tiny, "_train", whole)
    assert train(out, steps=2)[0] == 0
    assert read_manifest(out / "manifest.json")["config"]["steps"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_traces_of_another_tokenizer_are_refused_before_training(train, write, tmp_path):
    trace = {"id": "a", "prompt_ids": [5, 6, 7], "token_ids": [8, 5009], "text": ""}
    code, _, err = train(tmp_path / "out", traces=write("t.jsonl", [trace]))
    assert (code, err.count("\n")) == (1, 1)
    assert "t.jsonl:1" in err
    assert "5009" in err
    assert not (tmp_path / "out").exists()
