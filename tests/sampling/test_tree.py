"""The device loop builds the reference's tree, node for node."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import (
    BATCH,
    CAPACITY,
    EOS,
    PROMPT,
    VOCABULARY,
    config,
    make_policy,
    question_keys,
    start,
    tables,
)
from tree_reference import Search, Settings, fold_in, uniform

from caspo_jax.sampling import Boundary, Knobs, Tree, cat_decode, tree_of
from caspo_jax.sampling import state as codes
from caspo_jax.sampling.branching import forks
from caspo_jax.sampling.policy import fork_expand, score_last, score_never, score_path, score_relative
from caspo_jax.sampling.traces import build_trace
from caspo_jax.types import Question

# (prune score, its name, step confidence, path confidence): one compiled program each.
PROGRAMS = {
    "last-dyadic-min": (score_last, "last", "dyadic", "min"),
    "path-dyadic-last": (score_path, "path", "dyadic", "last"),
    "path-entropy-geometric": (score_path, "path", "entropy", "geometric"),
    "relative-mean_logprob-product": (score_relative, "relative", "mean_logprob", "product"),
    "explore-entropy-geometric": (score_never, None, "entropy", "geometric"),
}
STEPS = {
    "dyadic": lambda entropies, logprobs: (1.0, 0.5, 0.25)[len(entropies) % 3],
    "entropy": lambda entropies, logprobs: math.exp(-sum(entropies) / len(entropies)),
    "mean_logprob": lambda entropies, logprobs: math.exp(sum(logprobs) / len(logprobs)),
}
PATHS = {
    "min": min,
    "last": lambda c: c[-1],
    "product": math.prod,
    "geometric": lambda c: math.exp(sum(map(math.log, c)) / len(c)),
}


def random_config(rng, slots: int, exact: bool):
    return config(
        num_branches=slots,
        root_branches=int(rng.integers(1, slots + 1)),
        # Ties with the threshold are tested where they are exact, and avoided where they are not.
        threshold=float(rng.choice([0.0, 0.2, 0.25, 0.3, 0.5, 0.6, 1.0])) + (0.0 if exact else 0.017),
        expand=int(rng.integers(1, 5)),
        num_answers=int(rng.integers(1, 2 * slots + 1)),
        min_live=int(rng.integers(0, 3)),
        token_budget=None if rng.random() < 0.5 else int(rng.integers(slots, 40)),
        max_new_tokens=int(rng.integers(1, CAPACITY + 1)),
        temperature=float(rng.uniform(0.5, 1.5)),
        step_delimiter=str(rng.choice(["\n\n", "\n\n", "\n\n", ".\n\n", "\n", "ab"])),
        stop=tuple(str(s) for s in rng.choice(["aa", ".\na", "b\n\n"], rng.integers(0, 3), replace=False)),
        ignore_eos=bool(rng.random() < 0.2),
    )


def reference(name: str, settings, model, key) -> Search:
    _, prune, step, path = PROGRAMS[name]
    s = settings.sample
    return Search(
        Settings(
            table=model.astype(np.float64).tolist(),
            vocabulary=VOCABULARY,
            delimiter=s.step_delimiter.encode(),
            stops=[stop.encode() for stop in s.stop],
            eos=None if s.ignore_eos else EOS,
            slots=settings.num_branches,
            roots=settings.roots,
            threshold=settings.threshold,
            prune=prune,
            expand=settings.expand,
            num_answers=settings.answers,
            min_live=settings.min_live,
            budget=10**9 if settings.token_budget is None else settings.token_budget,
            max_new_tokens=s.max_new_tokens,
            temperature=s.temperature,
            step=STEPS[step],
            path=PATHS[path],
            exact=step == "dyadic",
        ),
        (int(key[0]), int(key[1])),
        PROMPT,
    )


def close(a: float, b: float | None) -> bool:
    return math.isnan(a) if b is None else math.isclose(a, b, rel_tol=1e-4)


def assert_same(tree, search: Search, label: str) -> None:
    assert len(tree.parent) == len(search.nodes), label
    for i, node in enumerate(search.nodes):
        tokens = tree.token[tree.start[i] : tree.end[i], tree.slot[i]].tolist()
        got = (int(tree.parent[i]), int(tree.rank[i]), tokens, codes.STATUSES[tree.status[i]])
        assert got == (node.parent, node.rank, node.tokens, node.status), f"{label}, node {i}"
        assert codes.REASONS[tree.reason[i]] == node.reason, f"{label}, node {i}"
        assert close(float(tree.confidence[i]), node.confidence), f"{label}, node {i}"
        assert close(float(tree.path_confidence[i]), node.path_confidence), f"{label}, node {i}"
    assert tree.tokens == search.tokens, label


def compare(name: str, slots: int, rounds: int, seed: int) -> tuple[int, set[str]]:
    """How many trees of `rounds` batches were compared, and the reasons that occurred in them."""
    score, _, step, path = PROGRAMS[name]
    policy = make_policy(score, fork_expand, step, path)
    compared, seen = 0, set()
    for round_ in range(rounds):
        rng = np.random.default_rng([seed, round_])
        settings = random_config(rng, slots, step == "dyadic")
        model, keys = tables(int(rng.integers(2**31))), question_keys(int(rng.integers(2**31)))
        state = jax.device_get(cat_decode(jax.numpy.asarray(model), start(model, keys, settings), policy))
        assert state.done.all()
        for b in range(BATCH):
            search = reference(name, settings, model[b], keys[b])
            if search.ambiguous:
                continue
            assert_same(
                tree_of(state, b), search, f"{name} seed {seed} round {round_} question {b}: {settings}"
            )
            compared += 1
            seen |= {str(node.reason) for node in search.nodes}
            seen |= {"fork"} if any(node.rank and node.parent >= 0 for node in search.nodes) else set()
    return compared, seen


def test_reference_keys_are_those_of_jax():
    key = jax.random.key(7)
    mine = tuple(int(x) for x in jax.random.key_data(key))
    assert fold_in(mine, 12345) == tuple(int(x) for x in jax.random.key_data(jax.random.fold_in(key, 12345)))
    assert uniform(mine) == float(jax.random.uniform(key))


@pytest.mark.parametrize("name", PROGRAMS)
def test_same_tree_as_the_reference(name):
    compared, seen = compare(name, slots=4, rounds=8, seed=0)
    assert compared > 0.8 * 8 * BATCH
    expected = {"delimiter", "eos", "stop", "length", "budget", "answers", "fork"}
    assert seen >= expected | (set() if name.startswith("explore") else {"threshold"})


def test_a_path_that_finishes_as_it_closes_a_step_takes_no_place_among_the_pruned():
    """Its stop string ends with the delimiter: it is as unsure as the branches beside it, of which two must stay."""
    name = "last-dyadic-min"
    score, _, step, path = PROGRAMS[name]
    settings = config(
        num_branches=4, threshold=0.9, min_live=2, num_answers=9, stop=("b\n\n",), max_new_tokens=CAPACITY
    )
    model, keys = tables(5), question_keys(5)
    words, newlines = [VOCABULARY.index(b"a"), VOCABULARY.index(b"b")], VOCABULARY.index(b"\n\n")
    model[..., words] += 4
    model[:, words, newlines] += 9
    state = cat_decode(
        jnp.asarray(model), start(model, keys, settings), make_policy(score, fork_expand, step, path)
    )
    together = 0
    for b in range(BATCH):
        tree, search = tree_of(jax.device_get(state), b), reference(name, settings, model[b], keys[b])
        if not search.ambiguous:
            assert_same(tree, search, f"question {b}")
            stopped, cut = (tree.end[tree.reason == code] for code in (codes.STOP, codes.THRESHOLD))
            together += bool(np.intersect1d(stopped, cut).size)
    assert together > 3


def test_an_end_token_that_completes_a_stop_string_is_an_end_token():
    model, dot = tables(6), VOCABULARY.index(b".")
    settings = config(num_branches=4, stop=(".",), max_new_tokens=CAPACITY)
    policy = make_policy(score_last, fork_expand)
    state = start(model, question_keys(6), settings, eos=dot)
    state = jax.device_get(cat_decode(jnp.asarray(model), state, policy))
    ends = set()
    for b in range(BATCH):
        tree = tree_of(state, b)
        ends |= {
            (int(tree.token[tree.end[i] - 1, tree.slot[i]]), int(tree.reason[i])) for i in tree.finished()
        }
    assert {reason for token, reason in ends if token == dot} == {codes.EOS}


def forked(expand):
    """[source slot, child rank] of five slots, three of them at a boundary and two free."""
    live = jnp.asarray([[True, True, True, False, False]])
    sure = jnp.asarray([[0.7, 0.8, 0.9, 0.0, 0.0]])
    view = Boundary(live, live, sure, sure, jnp.ones((1, 5), jnp.int32), jnp.arange(5)[None])
    knobs = Knobs.of(config(num_branches=5, expand=expand))
    return [x.tolist() for x in forks(make_policy(score_last, fork_expand), knobs, view, ~live)[:2]]


def test_any_number_of_children_may_be_allowed():
    assert forked(3) == forked(10**9) == forked(2**31 - 1) == [[[0, 1, 2, 2, 2]], [[0, 0, 0, 1, 2]]]


def test_confidences_too_small_for_floats_are_alike():
    live = jnp.asarray([[True, True, False]] * 2)
    sure = jnp.asarray([[0.0, 0.0, 0.0], [0.0, 0.5, 0.9]])
    view = Boundary(live, live, sure, sure, jnp.ones((2, 3), jnp.int32), jnp.arange(3)[None])
    score = score_relative(Knobs.of(config()), view)
    assert score[0].tolist() == [1, 1, 1]
    assert score[1, :2].tolist() == [0, 1]


def test_a_step_whose_confidence_is_not_a_number_moves_no_other():
    """A trace of four nodes: three steps closed, the second with NaN, and one cut off."""
    tokens = np.array([[VOCABULARY.index(t)] for t in (b"a", b"\n\n") * 3 + (b"b",)], np.int32)
    chain = np.arange(4, dtype=np.int32)
    sure = np.array([0.9, np.nan, 0.5, np.nan], np.float32)
    tree = Tree(
        parent=chain - 1, rank=0 * chain, slot=0 * chain, start=2 * chain, end=np.minimum(2 * chain + 2, 7),
        status=np.array([codes.CLOSED] * 3 + [codes.EXPIRED]), reason=np.array([codes.DELIMITER] * 3 + [codes.BUDGET]),
        confidence=sure, path_confidence=sure, token=tokens,
        stats={"logprob": np.zeros((7, 1), np.float32), "entropy": np.ones((7, 1), np.float32)}, tokens=7,
    )  # fmt: skip
    trace = build_trace(tree, 3, Question(id="q", question="?"), (0,), VOCABULARY, "\n\n", "cat")
    assert [step.text for step in trace.steps] == ["a", "a", "a", "b"]
    assert [step.confidence for step in trace.steps] == [pytest.approx(0.9), None, 0.5, None]


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("name", PROGRAMS)
def test_same_tree_as_the_reference_at_length(name, slots):
    compared, _ = compare(name, slots=slots, rounds=60, seed=1)
    assert compared > 0.8 * 60 * BATCH
