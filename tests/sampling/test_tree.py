"""The device loop builds the reference's tree, node for node."""

from __future__ import annotations

import math

import jax
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

from caspo_jax.sampling import cat_decode, tree_of
from caspo_jax.sampling import state as codes
from caspo_jax.sampling.policy import fork_expand, score_last, score_never, score_path, score_relative

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


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("name", PROGRAMS)
def test_same_tree_as_the_reference_at_length(name, slots):
    compared, _ = compare(name, slots=slots, rounds=60, seed=1)
    assert compared > 0.8 * 60 * BATCH
