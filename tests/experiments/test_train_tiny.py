"""The tiny policies' trainer: its text, and what passes from one task's policy to another's."""

import random

import numpy as np

from caspo_jax.models import load_pretrained
from caspo_jax.store import write_jsonl
from caspo_jax.tasks import get_task
from caspo_jax.tasks.tokenizer import build_tokenizer
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


def test_copies_come_first_and_recorded_outputs_replace_what_the_task_writes(tmp_path):
    task = get_task("graph")
    _, tokenizer = load_pretrained(task.policy_path)
    trace = {"id": "a", "prompt_ids": [5, 6, 7], "token_ids": [8, 9], "text": "", "finish_reason": "eos"}
    write_jsonl(tmp_path / "t.jsonl", [trace])
    batches = text_of(task, second=True, copying=1, traces=str(tmp_path / "t.jsonl")).batches(tokenizer)
    ids, mask = next(batches)
    for row, learned in zip(ids, mask, strict=True):
        period = np.argmax(learned) - 1
        np.testing.assert_array_equal(row[period:], row[:-period])
    ids, mask = next(batches)
    assert ids[:, :6].tolist() == [[5, 6, 7, 8, 9, 0]] * 4
    assert mask.sum(axis=1).tolist() == [2] * 4
    assert mask[0, 3:5].all()
