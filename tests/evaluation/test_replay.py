"""Replays of unpruned paths against the search itself, on table-driven models where every comparison is exact."""

import dataclasses

import jax
import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.replay import RecordedPath, judged_paths, replay, unjudged_paths, unpruned
from caspo_jax.evaluation.thresholds import question_score
from caspo_jax.models import load_pretrained
from caspo_jax.sampling import CatConfig, SampleConfig, cat_decode, cat_search, generate, tree_of
from caspo_jax.sampling.policy import fork_expand, fork_never, score_last, score_never, score_path
from caspo_jax.sampling.traces import build_tree
from caspo_jax.tasks import get_task
from caspo_jax.types import CatNode, CatTree
from tests.sampling.toy_model import BATCH, config, make_policy, question_keys, start, tables

RULES = {"last": score_last, "path": score_path}


def grow(prune, fork, model, keys, settings):
    state = start(model, keys, settings)
    policy = make_policy(prune, fork, "entropy", "geometric")
    state = jax.device_get(cat_decode(jax.numpy.asarray(model), state, policy))
    assert state.done.all()
    return [tree_of(state, b) for b in range(BATCH)]


def record(tree):
    return build_tree(tree, "q", (0,), (0, 0), None)


def sequence(tree, node):
    return tuple(
        t for i in tree.path(node) for t in tree.token[tree.start[i] : tree.end[i], tree.slot[i]].tolist()
    )


@pytest.mark.parametrize("rule", RULES)
def test_replay_is_the_search_without_forks(rule):
    pruned_somewhere = 0
    for seed in range(6):
        rng = np.random.default_rng([7, seed])
        model, keys = tables(int(rng.integers(2**31))), question_keys(int(rng.integers(2**31)))
        settings = config(num_branches=4, temperature=1.0, max_new_tokens=int(rng.integers(6, 25)), expand=1)
        plain = grow(score_never, fork_never, model, keys, settings)
        for threshold in (0.0, 0.3, 0.6):
            least = int(rng.integers(0, 3))
            changed = dataclasses.replace(settings, threshold=threshold, min_live=least)
            searched = grow(RULES[rule], fork_never, model, keys, changed)
            for before, after in zip(plain, searched):
                leaves = before.finished()
                paths = judged_paths("q", unjudged_paths(record(before), rule), [True] * len(leaves))
                found = replay(paths, threshold, least)
                want = sorted(sequence(after, n) for n in after.finished())
                assert sorted(sequence(before, leaves[i]) for i in found.finished) == want
                assert found.tokens == after.tokens
                pruned_somewhere += len(found.pruned)
                lowest = question_score(paths)
                if least == 0:
                    assert (lowest < threshold) == (not found.finished)
    assert pruned_somewhere > 20


def test_original_paths_under_cat_are_those_of_plain_sampling():
    """Forks only take free slots and draw by keys of their own: the K first branches never notice them."""
    forks = cut = whole = 0
    for seed in range(6):
        rng = np.random.default_rng([11, seed])
        model, keys = tables(int(rng.integers(2**31))), question_keys(int(rng.integers(2**31)))
        settings = config(num_branches=4, temperature=1.0, max_new_tokens=24, expand=3, num_answers=10**6)
        settings = dataclasses.replace(settings, threshold=0.55)
        plain = grow(score_never, fork_never, model, keys, unpruned(settings))
        searched = grow(score_path, fork_expand, model, keys, settings)
        for before, after in zip(plain, searched):
            by_root = {before.path(n)[0]: sequence(before, n) for n in before.finished()}
            parents = set(after.parent.tolist())
            for node in [i for i in range(len(after.parent)) if i not in parents]:
                chain = after.path(node)
                if any(after.rank[i] for i in chain[1:]):
                    forks += 1
                    continue
                mine, original = sequence(after, node), by_root[chain[0]]
                finished = node in after.finished()
                assert mine == (original if finished else original[: len(mine)])
                whole, cut = whole + finished, cut + (not finished)
    assert min(forks, cut, whole) > 20


@pytest.mark.slow
@pytest.mark.parametrize("prune", RULES)
def test_original_paths_of_the_shipped_policy_under_forks(prune):
    """The same through the whole library: branch k of a pruning, forking search writes sample k as far as it lives."""
    task = get_task("graph")
    model, tokenizer = load_pretrained(task.policy_path)
    questions = task.questions("tune", 16, seed=3)
    settings = CatConfig(
        num_branches=4,
        threshold=0.85,
        prune=prune,
        step_confidence="mean_logprob",
        sample=SampleConfig(max_new_tokens=96, temperature=0.9),
    )
    key = jax.random.key(5)
    sampled = generate(model, tokenizer, questions, dataclasses.replace(settings.sample, num_samples=4), key)
    searched = cat_search(model, tokenizer, questions, settings, key)
    cut = whole = forks = 0
    for q, result in enumerate(searched):
        nodes = result.tree.nodes
        below = [[i for i, n in enumerate(nodes) if n.parent == parent] for parent in range(-1, len(nodes))]
        forks += sum(len(children) > 1 for children in below[1:])
        assert len(below[0]) == 4
        for root, sample in zip(below[0], sampled[4 * q : 4 * q + 4], strict=True):
            end = _along(nodes, below, root, sample.token_ids)
            assert end is not None
            whole, cut = whole + (end == "finished"), cut + (end != "finished")
    assert min(cut, whole, forks) > 5


def _along(nodes, below, node, rest):
    """Status of the leaf where a branch from `node` on that spells `rest`, or its beginning if it was cut, ends."""
    mine = tuple(nodes[node].token_ids)
    if tuple(rest[: len(mine)]) != mine:
        return None
    rest, children = rest[len(mine) :], below[node + 1]
    if not children:
        status = nodes[node].status
        return None if status == "finished" and rest else status
    return next((s for child in children if (s := _along(nodes, below, child, rest))), None)


def test_replay_by_hand():
    a = RecordedPath((3, 6), (0.9, 0.2), (0, 4), 8, True)
    b = RecordedPath((3,), (0.1,), (1,), 5, False)
    c = RecordedPath((), (), (), 4, False)
    assert replay([a, b, c], 0.5).pruned == ((1, 0),)  # a is the last live branch when it fails
    assert replay([a, b, c], 0.5).tokens == 8 + 3 + 4
    assert replay([a, b, c], 0.5).finished == (0, 2)
    assert replay([a, b, c], 0.5, min_live=0).finished == (2,)
    assert replay([a, b, c], 0.5, min_live=0).tokens == 6 + 3 + 4
    assert replay([a, b, c], 0.0).finished == (0, 1, 2)
    assert replay([b, b], 0.5).pruned == ((0, 0),)  # one must stay
    later = dataclasses.replace(b, nodes=(2,))
    assert replay([b, later], 0.5).pruned == replay([b, later, a], 0.5, min_live=2).pruned == ((1, 0),)
    assert replay([b], 0.1, min_live=0).pruned == ()  # strictly below, as float32 sees them
    near = dataclasses.replace(b, confidences=(float(np.float32(0.7)),))
    assert near.confidences[0] < 0.7
    assert replay([near], 0.7, min_live=0).pruned == ()


def test_trees_that_cannot_be_replayed_are_refused():
    def node(parent, status):
        return CatNode(parent, (1,), (-0.1,), (0.1,), 0.5, 0.5, status, None)

    forked = CatTree("q", (0,), (node(-1, "closed"), node(0, "finished"), node(0, "finished")), (0, 0), None)
    pruned = CatTree("q", (0,), (node(-1, "pruned"),), (0, 0), None)
    good = CatTree("q", (0,), (node(-1, "closed"), node(0, "finished")), (0, 0), None)
    for tree in (forked, pruned):
        with pytest.raises(UserError, match="threshold 0 and expand 1"):
            unjudged_paths(tree, "last")
    with pytest.raises(UserError, match="1 paths, 2 verdicts"):
        judged_paths("q", unjudged_paths(good, "last"), [True, True])
    with pytest.raises(UserError, match="cannot be replayed"):
        unjudged_paths(good, "relative")
    assert unjudged_paths(good, "last")[0].lowest == 0.5


def test_a_boundary_without_a_step_looks_at_the_newest_one():
    sure = (None, 0.5, None, 0.9, 0.1)
    nodes = tuple(
        CatNode(i - 1, (1, 2), (), (), c, c, "finished" if i == 4 else "closed", None)
        for i, c in enumerate(sure)
    )
    for rule in RULES:
        (path,) = unjudged_paths(CatTree("q", (0,), nodes, (0, 0), None), rule)
        assert path.boundaries == (2, 4, 6, 8)
        np.testing.assert_array_equal(path.confidences, (np.nan, 0.5, 0.5, 0.9))
        assert (path.nodes, path.tokens, path.lowest) == ((0, 1, 2, 3), 10, 0.5)
