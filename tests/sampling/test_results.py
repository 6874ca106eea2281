"""What is made of a question's tree: its paths and their vote, as the configuration says."""

from __future__ import annotations

import numpy as np
import pytest
from test_decided import hand_made
from toy_model import VOCABULARY, config

from caspo_jax.sampling import results, vote
from caspo_jax.sampling import state as codes
from caspo_jax.sampling.results import search_results
from caspo_jax.sampling.run import Run
from caspo_jax.sampling.votes import same_text
from caspo_jax.types import Question

A, DOT, B = (VOCABULARY.index(text) for text in (b"a", b".", b"b"))
# Two like answers and one that is surer, less likely or more likely than either.
TREE, _ = hand_made(
    (codes.FINISHED, -2.0, 0.5, A),
    (codes.FINISHED, -1.5, 0.4, DOT),
    (codes.FINISHED, -1.0, 0.7, B),
)
SAME = {"a": "a", ".": "a", "b": "b"}


def found(monkeypatch, settings, strategy="cat", equivalent=same_text):
    run = Run([Question(id="q", question="?")], [(0,)], [(1, 2)], VOCABULARY, [[TREE]] * len(settings))
    monkeypatch.setattr(results, "run", lambda *arguments, **options: run)
    return search_results(
        None, None, ["?"], settings, None, strategy=strategy, batch_size=None, extract=lambda text: text,
        equivalent=equivalent, progress=None, usage=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "gamma", "answer"),
    [
        ("majority", 1.0, "a"),
        ("confidence", 1.0, "a"),
        ("confidence", 5.0, "b"),
        ("sequence", 1.0, "b"),
        ("best_path", 1.0, "b"),
    ],
)
def test_paths_vote_as_the_configuration_says(monkeypatch, method, gamma, answer):
    def equivalent(a, b):
        return SAME[a] == SAME[b]

    settings = config(vote=method, gamma=gamma)
    (result,) = found(monkeypatch, [settings], equivalent=equivalent)
    assert result.answer == answer
    assert [path.answer for path in result.paths] == ["a", ".", "b"]
    assert result.votes == vote(result.paths, method, equivalent=equivalent, gamma=gamma)[1]
    assert len(found(monkeypatch, [settings])[0].votes) == 3  # no two are the same text


@pytest.mark.parametrize("strategy", ["cat", "self_consistency", "explore"])
def test_a_tree_names_the_threshold_that_it_was_pruned_by(monkeypatch, strategy):
    several = found(monkeypatch, [config(threshold=t) for t in (0.25, 0.5)], strategy)
    want = [0.25, 0.5] if strategy == "cat" else [None, None]
    assert [result.tree.threshold for result in several] == want
    assert [result.tree.key for result in several] == [(1, 2)] * 2
    np.testing.assert_allclose([node.path_confidence for node in several[0].tree.nodes], [0.5, 0.4, 0.7])
