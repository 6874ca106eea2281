"""The tiny policies' trainer: what passes from one task's policy to another's."""

import random

import numpy as np

from caspo_jax.models import load_pretrained
from caspo_jax.tasks import get_task
from caspo_jax.tasks.tokenizer import build_tokenizer
from experiments.train_tiny import with_tokenizer


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
