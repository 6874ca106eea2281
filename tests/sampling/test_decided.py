"""A vote that is called decided is the vote of the whole search."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import BATCH, CAPACITY, EOS, VOCABULARY, config, make_policy, question_keys, start, tables

import caspo_jax as cj
from caspo_jax.confidence import PATH_CONFIDENCES
from caspo_jax.sampling import Tree, batch, cat_decode, tree_of, vote
from caspo_jax.sampling import state as codes
from caspo_jax.sampling.decided import is_decided
from caspo_jax.sampling.policy import fork_expand, score_last
from caspo_jax.sampling.state import end_decided
from caspo_jax.sampling.traces import build_trace
from caspo_jax.sampling.votes import same_text
from caspo_jax.tasks import extract_answer, get_task
from caspo_jax.types import Question

QUESTION = Question(id="q", question="?")


def first_byte(text):
    """Few answers, so that votes are often decided."""
    return text[:1].strip() or None


def finished(tree, settings):
    traces = [
        build_trace(tree, node, QUESTION, (0,), VOCABULARY, settings.sample.step_delimiter, "cat")
        for node in tree.finished()
    ]
    return [dataclasses.replace(trace, answer=first_byte(trace.text)) for trace in traces]


def answer_of(tree, settings):
    paths = finished(tree, settings)
    return vote(paths, settings.vote, extract=first_byte, gamma=settings.gamma)[0]


def early_answers(method: str, seed: int, rounds: int) -> int:
    """How many questions were decided before they ended, each checked against its whole search."""
    policy = make_policy(score_last, fork_expand, "mean_logprob", "geometric")
    early = 0
    for round_ in range(rounds):
        rng = np.random.default_rng([seed, round_])
        settings = config(
            num_branches=8,
            root_branches=int(rng.integers(6, 9)),
            expand=int(rng.choice([1, 1, 1, 2])),
            threshold=float(rng.choice([0.0, 0.217, 0.417])),
            num_answers=int(rng.integers(4, 16)),
            max_new_tokens=CAPACITY,
            step_confidence="mean_logprob",
            vote=method,
            gamma=float(rng.choice([1.0, 5.0])),
        )
        model = 2 * tables(int(rng.integers(2**31)))  # sure of themselves: many equal answers
        model[..., EOS] += 4  # and of different lengths
        state = start(model, question_keys(int(rng.integers(2**31))), settings)
        model = jnp.asarray(model)
        whole = cat_decode(model, state, policy)
        said: dict[int, str | None] = {}
        for limit in range(2, CAPACITY, 2):
            state = cat_decode(model, dataclasses.replace(state, limit=jnp.int32(limit)), policy)
            for b in set(np.flatnonzero(~np.asarray(state.done)).tolist()) - set(said):
                tree = tree_of(state, b)
                if is_decided(tree, finished(tree, settings), settings, first_byte, same_text):
                    said[b] = answer_of(tree, settings)
        for b, answer in said.items():
            assert answer == answer_of(tree_of(whole, b), settings), (round_, b, settings)
        early += len(said)
    return early


@pytest.mark.parametrize("method", ["majority", "confidence", "sequence"])
def test_what_is_decided_stays(method):
    assert early_answers(method, seed=0, rounds=6) >= 3


def test_the_best_path_can_always_be_beaten():
    assert early_answers("best_path", seed=0, rounds=1) == 0


def test_a_confidence_without_an_upper_bound_decides_nothing():
    settings = config(num_branches=4, step_confidence="deepconf", vote="confidence", max_new_tokens=CAPACITY)
    state = start(tables(0), question_keys(0), settings)
    policy = make_policy(score_last, fork_expand, "mean_logprob", "geometric")
    state = cat_decode(jnp.asarray(tables(0)), dataclasses.replace(state, limit=jnp.int32(8)), policy)
    for b in range(BATCH):
        tree = tree_of(state, b)
        if not bool(state.done[b]):
            assert not is_decided(tree, finished(tree, settings), settings, first_byte, same_text)


def hand_made(*paths):
    """A tree of the root's children, each (status, log-prob, confidence, first byte), and its finished paths."""
    status, logprob, confidence, token = zip(*paths, strict=True)
    count = len(paths)
    none, column = np.full(count, -1, np.int32), np.array([logprob], np.float32)
    sure = np.array(confidence, np.float32)
    tree = Tree(
        parent=none, rank=np.arange(count), slot=np.arange(count), start=none + 1, end=none + 2,
        status=np.array(status), reason=np.where(np.array(status) == codes.FINISHED, codes.EOS, codes.LENGTH),
        confidence=sure, path_confidence=sure, token=np.array([token], np.int32),
        stats={"logprob": column, "entropy": -column}, tokens=count,
    )  # fmt: skip
    return tree, finished(tree, config())


A, NONE = VOCABULARY.index(b"a"), VOCABULARY.index(b"\n")  # what they begin with: an answer, and no answer


@pytest.mark.parametrize(
    ("live", "unanswered", "decided"),
    [
        (-10.0, -20.0, True),
        (-3.0, -0.1, False),  # likelier than all that has an answer, if not than all that has ended
        (-1.0, -2000.0, False),
    ],
)
@pytest.mark.parametrize("answered", [-5.0, -900.0])
def test_what_is_to_come_is_held_against_paths_with_an_answer(live, unanswered, decided, answered):
    tree, paths = hand_made(
        (codes.FINISHED, answered, 0.5, A),
        (codes.FINISHED, unanswered, 0.5, NONE),
        (codes.LIVE, live, np.nan, A),
    )
    decided = decided and answered == -5.0  # else the live branch is likelier by more than a float holds
    assert is_decided(tree, paths, config(num_branches=3), first_byte, same_text) == decided


@pytest.mark.parametrize(
    ("lead", "live", "expand", "answers", "decided"),
    [
        (2, 2, 1, 9, False),  # both may still finish, and a draw is no decision
        (3, 2, 1, 9, True),
        (3, 1, 2, 4, True),  # one answer is missing, and both slots may finish at once
        (3, 1, 2, 5, False),
        (2, 1, 2, 3, False),
        (4, 2, 2, 5, True),
        (4, 2, 2, 4, True),  # as many as are wanted have finished
    ],
)
def test_what_branches_and_their_forks_may_add_is_counted(lead, live, expand, answers, decided):
    ended = [(codes.FINISHED, -1.0, 0.9, A)] * lead
    tree, paths = hand_made(*ended, *[(codes.LIVE, -1.0, np.nan, A)] * live)
    settings = config(num_branches=2, expand=expand, num_answers=answers, vote="majority")
    assert is_decided(tree, paths, settings, first_byte, same_text) == decided


def test_ending_a_question_leaves_its_tree_as_it_is_and_the_others_alone():
    """Only what was open is closed: with all its tokens, and with its reason."""
    settings = config(num_branches=4, num_answers=9, max_new_tokens=CAPACITY)
    state = start(tables(0), question_keys(0), settings)
    policy = make_policy(score_last, fork_expand, "mean_logprob", "geometric")
    state = cat_decode(jnp.asarray(tables(0)), dataclasses.replace(state, limit=jnp.int32(8)), policy)
    ends = ~np.asarray(state.done) & (np.arange(BATCH) % 2 == 0)
    assert 0 < ends.sum() < (~np.asarray(state.done)).sum()
    ended = end_decided(state, ends)
    np.testing.assert_array_equal(ended.done, np.asarray(state.done) | ends)
    np.testing.assert_array_equal(ended.slots.live, np.asarray(state.slots.live) & ~ends[:, None])
    for b in range(BATCH):
        before, after = tree_of(state, b), tree_of(ended, b)
        assert before.tokens == after.tokens
        np.testing.assert_array_equal(before.end, after.end)
        assert sum(map(len, after.used("entropy"))) == after.tokens
        open_ = (before.status == codes.LIVE) & ends[b]
        np.testing.assert_array_equal(after.status, np.where(open_, codes.EXPIRED, before.status))
        np.testing.assert_array_equal(after.reason, np.where(open_, codes.DECIDED, before.reason))


def test_one_sure_path_outweighs_powers_that_no_float_holds():
    ended = [(codes.FINISHED, -1.0, 1e-14, A)] * 3
    settings = config(num_branches=4, expand=1, vote="confidence", gamma=25.0)
    tree, paths = hand_made(*ended, (codes.LIVE, -1.0, np.nan, A))
    assert not is_decided(tree, paths, settings, first_byte, same_text)
    assert is_decided(*hand_made(*ended), settings, first_byte, same_text)


def test_a_path_confidence_of_ones_own_has_no_upper_bound(monkeypatch):
    monkeypatch.setitem(PATH_CONFIDENCES, "total", PATH_CONFIDENCES["min"])
    wanted = {"vote": "confidence", "path_confidence": "total"}
    with pytest.raises(cj.UserError, match=r"'total' has no upper bound.*take one of geometric"):
        cj.CatConfig(stop_decided=True, **wanted)
    tree, paths = hand_made(*[(codes.FINISHED, -1.0, 0.9, A)] * 3, (codes.LIVE, -1.0, np.nan, A))
    assert is_decided(tree, paths, config(num_branches=4, vote="majority", expand=1), first_byte, same_text)
    settings = config(num_branches=4, expand=1, **wanted)
    assert not is_decided(tree, paths, settings, first_byte, same_text)


def test_a_search_that_stops_early_answers_alike_with_fewer_tokens():
    task = get_task("graph")
    model, tokenizer = cj.load_pretrained(task.policy_path)
    questions = task.questions("tune", 12, seed=0)
    sample = cj.SampleConfig(max_new_tokens=96, temperature=0.7)
    results = []
    for stop in (False, True):
        settings = cj.CatConfig(num_branches=4, threshold=0.8, stop_decided=stop, sample=sample)
        results.append(
            cj.cat_search(model, tokenizer, questions, settings, jax.random.key(0), extract=extract_answer)
        )
    for whole, early in zip(*results, strict=True):
        assert early.answer == whole.answer
        assert early.tokens <= whole.tokens
    ended = [r for r in results[1] if any(node.reason == "decided" for node in r.tree.nodes)]
    assert ended
    assert sum(r.tokens for r in results[1]) < sum(r.tokens for r in results[0])
    assert not any(node.status == "live" for result in results[1] for node in result.tree.nodes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"vote": "best_path"}, "a surer path may always come"),
        ({"vote": "confidence", "step_confidence": "deepconf"}, "no upper bound"),
    ],
)
def test_votes_that_are_never_decided_are_refused(changes, match):
    with pytest.raises(cj.UserError, match=match):
        cj.CatConfig(stop_decided=True, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "decided"), [("majority", 80), ("confidence", 25), ("sequence", 200)])
def test_what_is_decided_stays_over_many_models(method, decided):
    assert early_answers(method, seed=1, rounds=60) > decided


def test_a_finished_path_is_read_once_however_often_its_search_is_looked_at(monkeypatch):
    from caspo_jax.sampling import results as results_module

    task = get_task("graph")
    model, tokenizer = cj.load_pretrained(task.policy_path)
    questions = task.questions("tune", 6, seed=0)
    sample = cj.SampleConfig(max_new_tokens=96, temperature=0.7)
    settings = cj.CatConfig(num_branches=4, threshold=0.0, stop_decided=True, sample=sample)
    read, looked = [], []

    def built(tree, node, record, *rest, build=results_module.build_trace):
        read.append((record.id, node))
        return build(tree, node, record, *rest)

    def asked(tree, paths, *_):
        looked.extend(paths)
        return False

    monkeypatch.setattr(batch, "CHECK_EVERY", 2)
    monkeypatch.setattr(results_module, "build_trace", built)
    monkeypatch.setattr(results_module, "is_decided", asked)
    extracted = []

    def extract(text):
        extracted.append(text)
        return extract_answer(text)

    found = cj.cat_search(model, tokenizer, questions, settings, jax.random.key(0), extract=extract)
    paths = [path for result in found for path in result.paths]
    assert len(read) == len(set(read)) == len(extracted) == len(paths)
    assert len(looked) > len(set(map(id, looked)))  # some were looked at again
    for result in found:
        chain = [n for n, node in enumerate(result.tree.nodes) if node.status == "finished"]
        assert len(chain) == len(result.paths)
        for path, node in zip(result.paths, chain):
            assert (
                path.token_ids[-len(result.tree.nodes[node].token_ids) :] == result.tree.nodes[node].token_ids
            )
            assert path.answer == extract_answer(path.text)


@pytest.mark.ci
def test_long_searches_are_looked_at_at_longer_intervals(monkeypatch):
    """A look reads all their tokens: at even intervals those of 32,000 would be read two thousand times."""
    task = get_task("graph")
    model, tokenizer = cj.load_pretrained(task.policy_path)
    sample = cj.SampleConfig(max_new_tokens=300, temperature=0.7, ignore_eos=True)
    settings = cj.CatConfig(num_branches=2, stop_decided=True, sample=sample)
    segments, run = [], batch.Batch.run

    def spied(self, state, iterations):
        segments.append((int(state.iteration), iterations))
        return run(self, state, iterations)

    monkeypatch.setattr(batch, "CHECK_EVERY", 1)
    monkeypatch.setattr(batch.Batch, "run", spied)
    cj.cat_search(model, tokenizer, task.questions("tune", 1, seed=0), settings, jax.random.key(0))
    assert segments[0] == (0, 1)
    assert segments[-1][0] > 256
    assert all(iterations == max(1, age // 64) for age, iterations in segments)
