"""Votes and truncations against counts made by hand and by loops; the step-level searches on the shipped policy."""

import dataclasses
import types

import numpy as np
import pytest

from caspo_jax.confidence import TokenStats
from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks import get_benchmark
from caspo_jax.evaluation.strategies import pool as pool_module
from caspo_jax.evaluation.strategies import single as single_module
from caspo_jax.evaluation.strategies import truncating
from caspo_jax.evaluation.strategies.base import Answer, Context, Settings, timed
from caspo_jax.evaluation.strategies.mcts import Node, select
from caspo_jax.evaluation.strategies.pool import (
    VOTES,
    Pool,
    Sample,
    at_counts,
    elect,
    group_confidences,
    pool_answers,
    voted,
    with_statistics,
)
from caspo_jax.evaluation.strategies.registry import STRATEGIES, check_names, families
from caspo_jax.evaluation.strategies.single import greedy, longest_path
from caspo_jax.evaluation.strategies.truncating import _all_differ, deepconf_online, kappa, survivor
from caspo_jax.types import CatNode, CatTree, Question, Trace


def same(a, b):
    return a == b


def sample(
    index,
    answer,
    *,
    correct=False,
    tokens=10,
    logprob=-1.0,
    path=0.9,
    certainty=1.0,
    lowest=1.0,
    spelling=None,
):
    return Sample(
        "q", index, answer, correct, tokens, logprob, path, certainty, lowest, spelling or str(index)
    )


def trace(ids, text=""):
    return Trace("q", "q", None, None, (0,), tuple(ids), text, "eos")


@pytest.mark.parametrize(
    ("name", "gold", "sloppy", "kind"),
    [
        ("tablebench", "3.14", "3", "Arithmetic"),
        ("math500", "2x+y=5", "5", ""),
        ("math500", "0.333333", r"\frac13", ""),
    ],
)
def test_one_sloppy_answer_does_not_take_in_the_better_ones(name, gold, sloppy, kind):
    """Wherever it stands: what is elected, and whether it is right, does not hang on the order of the samples."""
    benchmark = get_benchmark(name)
    question = Question("q", question="?", gold=gold, extra={"qsubtype": kind})
    answers = [sloppy, gold, gold, gold]
    pool = [sample(i, a, correct=bool(benchmark.score(a, question))) for i, a in enumerate(answers)]
    for order in (pool, pool[1:] + pool[:1]):
        winner = voted("self_consistency", "4", order, Settings(), benchmark.equal)
        assert (winner.answer, winner.correct) == (gold, True)


def test_the_heaviest_spelling_is_elected():
    def number(a, b):
        return float(a) == float(b)

    pool = [sample(0, "2"), sample(1, "2.0", path=0.5), sample(2, "2.0"), sample(3, "3", path=0.95)]
    assert elect(pool, [1.0, 1.0, 1.0, 1.0], number) is pool[1]
    assert elect(pool, [3.0, 1.0, 1.0, 1.0], number) is pool[0]
    assert elect(pool, [0.0, 0.0, 1.0, 0.0], number) is pool[2]  # of no weight, no vote


def test_votes_by_hand():
    pool = [
        sample(0, "1", correct=True, logprob=-0.5, path=0.95, certainty=5.0, lowest=3.0),
        sample(1, "2", logprob=-2.0, path=0.6, certainty=4.0, lowest=2.0),
        sample(2, "2", logprob=-2.0, path=0.6, certainty=1.0, lowest=0.1, spelling="1"),
        sample(3, None, logprob=0.0, path=1.0, certainty=9.0, lowest=9.0),
    ]
    settings = Settings(gamma=25.0, borda_power=2.0, keep=0.5)
    weights = {name: VOTES[name](pool, settings) for name in VOTES}
    assert weights["self_consistency"].tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(weights["confidence_vote"], [0.95**25, 0.6**25, 0.6**25, 0])
    np.testing.assert_allclose(
        weights["sequence_vote"] / weights["sequence_vote"][0], [1, np.exp(-1.5), 0, 0]
    )
    assert weights["self_certainty"].tolist() == [9, 4, 1, 16]  # (n - rank + 1)^2
    assert weights["deepconf"].tolist() == [3, 0, 0, 9]  # the best half
    assert elect(pool, weights["self_consistency"], same).answer == "2"
    assert elect(pool, weights["sequence_vote"], same).answer == "1"
    assert elect(pool[3:], [1.0], same) is None
    assert (
        elect(pool, [1.0, 0.5, 0.5, 7.0], same).answer == "1"
    )  # a tie: what came first; no answer has no weight
    answer = voted("sequence_vote", "4", pool, settings, same)
    assert (answer.correct, answer.tokens, answer.calls) == (True, 40, 11)
    (fewer,) = at_counts("self_consistency", "= cat 2", {"q": pool}, {"q": 1}, settings, same)
    assert (fewer.answer, fewer.tokens, fewer.size) == ("1", 10, "= cat 2")


def test_a_sample_without_an_answer_hides_no_other():
    pool = [
        sample(0, "1", logprob=-1200.0, path=1e-20),
        sample(1, "2", logprob=-1000.0, path=1e-14),
        sample(2, None, logprob=-50.0, path=1.0),
        sample(3, None, logprob=-1000.0, path=1e-14, spelling="1"),
    ]
    settings = Settings(gamma=25.0)
    for name in ("sequence_vote", "confidence_vote"):
        assert voted(name, "4", pool, settings, same).answer == "2"
        assert VOTES[name](pool, settings)[1:].tolist() == [1, 0, 0]
        assert voted(name, "2", pool[2:], settings, same).answer is None


def stats(confidences):
    return TokenStats(mean_top20_logprob=-np.asarray(confidences, float))


@pytest.mark.parametrize("window", [1, 3, 50])
def test_group_confidences_by_loops(window):
    values = np.random.default_rng(0).random(12)
    width = min(window, 12)
    want = [values[i : i + width].mean() for i in range(12 - width + 1)]
    np.testing.assert_allclose(group_confidences(stats(values), window), want)


def online_by_loops(confidences, answers, window, keep, warm_up):
    """Token by token: (answer, tokens decoded, forward passes: the prompt, the warm-up, then the others)."""
    groups = [group_confidences(stats(c), window) for c in confidences]
    bar = sorted(g.min() for g in groups[:warm_up])[
        int(np.ceil((1 - keep) * warm_up - 1e-9)) - 1 if keep < 1 else 0
    ]
    votes, spent = {}, [0] * len(confidences)
    for i, c in enumerate(confidences):
        stopped = False
        for t in range(len(c)):
            spent[i] += 1
            recent = c[max(0, t + 1 - window) : t + 1]
            full = len(recent) == window or (t + 1 == len(c) and len(c) < window)
            if i >= warm_up and full and np.mean(recent) < bar:
                stopped = True
                break
        if not stopped and groups[i].min() >= bar:
            votes[answers[i]] = votes.get(answers[i], 0) + groups[i].min()
    return max(votes, key=votes.get), sum(spent), 1 + max(spent[:warm_up]) + max(spent[warm_up:])


@pytest.mark.parametrize("seed", range(8))
def test_deepconf_online_is_the_token_by_token_procedure(seed):
    rng = np.random.default_rng(seed)
    window, keep, warm = 4, 0.5, 4
    confidences = [rng.random(int(rng.integers(2, 20))) + 1 for _ in range(8)]
    answers = [str(rng.integers(0, 3)) for _ in range(8)]
    pool = Pool(
        [[trace(range(len(c))) for c in confidences]],
        [[stats(c) for c in confidences]],
        [
            [
                sample(i, a, tokens=len(c), lowest=group_confidences(stats(c), window).min())
                for i, (a, c) in enumerate(zip(answers, confidences))
            ]
        ],
        [],
    )
    settings = Settings(samples=8, window=window, keep=keep, warm_up=warm, consensus=2.0)  # never reached
    (found,) = [a for a in deepconf_online(pool, settings, same) if a.size == "8"]
    want = online_by_loops(confidences, answers, window, keep, warm)
    assert (found.answer, found.tokens, found.calls) == want


def test_deepconf_online_stops_at_consensus():
    confidences = [np.ones(5)] * 4
    samples = [sample(i, "1", tokens=5, lowest=1.0) for i in range(4)]
    pool = Pool([[trace(range(5))] * 4], [[stats(c) for c in confidences]], [samples], [])
    found = [
        a for a in deepconf_online(pool, Settings(samples=4, warm_up=2, window=2), same) if a.size == "4"
    ]
    assert found[0].tokens == 10
    assert found[0].calls == 6


def online_pool(answers, lowest, tokens=5):
    samples = [sample(i, a, tokens=tokens, lowest=c) for i, (a, c) in enumerate(zip(answers, lowest))]
    flat = [stats([c] * tokens) for c in lowest]
    return Pool([[trace(range(tokens))] * len(answers)], [flat], [samples], [])


@pytest.mark.parametrize("answers, spent", [("aaab", 20), ("aabb", 40), ("ab", 10), ("aa", 10)])
def test_deepconf_online_goes_on_without_a_consensus(answers, spent):
    """Three of four hold three quarters; of two samples the first agrees with itself alone."""
    count = 2 * len(answers) if len(answers) > 2 else 2
    pool = online_pool([*answers, *"a" * (count - len(answers))], [1.0] * count)
    settings = Settings(samples=count, warm_up=4, window=2, consensus=0.75)
    (found,) = [a for a in deepconf_online(pool, settings, same) if a.size == str(count)]
    assert found.tokens == spent


@pytest.mark.parametrize("count", [2, 3])
def test_one_sample_is_no_consensus_however_short_the_warm_up(count):
    """`evaluate` gives a warm-up of one sample to a pool of two or three."""
    pool = online_pool(list("abb")[:count], [1.0, 1.0, 1.0][:count])
    settings = Settings(samples=count, warm_up=1, window=2)
    (found,) = [a for a in deepconf_online(pool, settings, same) if a.size == str(count)]
    assert (found.tokens, found.answer) == (5 * count, "aab"[count - 1])


def test_a_sample_without_an_answer_holds_no_vote_against_a_consensus():
    """All of three votes are a consensus, whatever the fourth sample did not come to; without a vote there is none."""
    settings = Settings(samples=8, warm_up=4, window=2)
    for answers, spent in (([None, *"aaa"], 20), ([None, *"aab"], 40), ([None] * 4, 40)):
        pool = online_pool([*answers, *"aaaa"], [9.0, *[1.0] * 7])
        (found,) = [a for a in deepconf_online(pool, settings, same) if a.size == "8"]
        assert (found.tokens, found.answer) == (spent, "a")


def test_deepconf_keeps_the_share_that_is_meant():
    """Seven of 25 at keep 0.28, although 0.28 x 25 is more than 7 in floats."""
    pool = [sample(i, "1", lowest=1.0 + i) for i in range(25)]
    assert np.count_nonzero(VOTES["deepconf"](pool, Settings(keep=0.28))) == 7


def test_deepconf_online_takes_the_bar_of_the_share_that_is_meant():
    """The third of ten at keep 0.7, although 1 - 0.7 is more than 0.3 in floats."""
    pool = online_pool(["no"] * 2 + ["yes"] + ["no"] * 17, [*range(1, 11), *[3.0] + [2.9] * 9])
    settings = Settings(samples=20, keep=0.7, warm_up=10, window=2, consensus=2.0)
    (found,) = [a for a in deepconf_online(pool, settings, same) if a.size == "20"]
    assert found.tokens == 10 * 5 + 5 + 9 * 2  # the sample at the bar goes on


def test_deepconf_online_counts_each_vote_once_where_answers_are_alike_in_chains():
    """x is like y, y like z, x not like z: y is with x, so z holds two of three votes, not three of three."""

    def alike(a, b):
        return a == b or {a, b} in ({"x", "y"}, {"y", "z"})

    pool = online_pool(["x", "y", "z", "z", "z", *["z"] * 5], [1.0] * 10)
    settings = Settings(samples=10, keep=0.5, warm_up=5, window=2, consensus=0.7)
    (found,) = [a for a in deepconf_online(pool, settings, alike) if a.size == "10"]
    assert found.tokens == 50  # 3 of 5 is no consensus


def test_strategies_that_vote_answer_with_one_sample():
    pool = online_pool(["1"], [1.0])
    pool = dataclasses.replace(pool, divergence=[[np.ones(5)]], stats=[[dataclasses.replace(
        pool.stats[0][0], top1_logprob=np.zeros(5), entropy=np.zeros(5))]])  # fmt: skip
    settings = Settings(samples=1)
    found = pool_answers(pool, settings, ("sample", *VOTES), same)
    found += [*deepconf_online(pool, settings, same), *kappa(pool, settings)]
    assert {(a.strategy, a.size, a.answer, a.tokens, a.calls) for a in found} == {
        (name, "1", "1", 5, 6) for name in ("sample", *VOTES, "deepconf_online", "kappa")
    }
    assert [settings.vote_sizes(n) for n in (1, 2, 6)] == [(1,), (2,), (2, 4, 6)]


def parts(scores):
    """KAPPA's three signals of one branch from one score a token: KL up, probability up, entropy down."""
    s = np.asarray(scores, float)
    return np.stack([s, s, -s])


def test_kappa_keeps_the_best_branch_and_counts_tokens():
    traces = [trace([i, *[9] * 11]) for i in range(4)]
    flat = [parts([0.1 * i] * 12) for i in (1, 3, 2, 0)]
    winner, spent, calls = survivor(traces, flat, gate=6)
    # All differ after one token; 1 of 4 goes at each second token of the gate of 6: after 3, 5 and 7.
    assert winner == 1
    assert spent == 12 + 3 + 5 + 7
    assert calls == 13
    assert survivor(traces[:1], flat[:1], gate=6) == (0, 12, 13)
    short = [trace([0, 1]), *traces[1:]]
    winner, spent, _ = survivor(short, [parts([9.0, 9.0]), *flat[1:]], gate=6)
    assert winner == 0  # a branch that ended keeps its score
    assert spent <= 2 + 12 * 3


def test_kappa_goes_by_means_and_against_entropy():
    """The first is far ahead and ends; the second, a little ahead for longer, has the larger sum and the smaller mean."""
    traces = [trace([0]), trace([1, 9]), trace([2, 9]), trace([3, 9])]
    flat = [parts([1.0]), parts([0.9, 0.3]), parts([-0.9, 1.0]), parts([-1.0, -1.3])]
    assert survivor(traces, flat, gate=1000)[0] == 0
    unsure = [np.array([[0.0, 0.0], [0.0, 0.0], [h, h]]) for h in (2.0, 1.0)]
    assert survivor(traces[1:3], unsure, gate=1)[0] == 1


def test_kappa_waits_until_all_branches_differ():
    traces = [trace([1, 1, 1, 1, 2]), trace([1, 1, 1, 1, 3])]
    assert survivor(traces, [parts([1] * 5), parts([0] * 5)], gate=1)[1] == 5 + 5
    early = [trace([1, 1, 1, 1, 2]), trace([2, 1, 1, 1, 3])]
    assert survivor(early, [parts([1] * 5), parts([0] * 5)], gate=1)[1] == 5 + 2


def test_kappa_reads_a_long_output_no_further_than_it_must(monkeypatch):
    """Once one branch is left nothing is chosen, so that no score is read; equal long outputs are compared once."""
    traces = [trace([i] * 12) for i in range(4)]
    read = [parts([0.1 * i] * 8) for i in (1, 3, 2, 0)]  # as above: one is left after 7 tokens
    assert survivor(traces, read, gate=6)[:2] == (1, 12 + 3 + 5 + 7)
    long = [tuple(range(4000))] * 2 + [(i, *range(3999)) for i in range(62)]
    compared, shared = [], truncating._shared
    monkeypatch.setattr(truncating, "_shared", lambda *two: compared.append(two) or shared(*two))
    assert _all_differ(long) == 4000
    assert len(compared) == 63  # of 64 outputs, not of all their beginnings


def test_outputs_differ_where_no_two_begin_alike():
    rng = np.random.default_rng(0)
    for _ in range(300):
        outputs = [tuple(rng.integers(0, 2, rng.integers(1, 9)).tolist()) for _ in range(rng.integers(1, 5))]
        shortest = min(map(len, outputs))
        apart = (n for n in range(1, shortest) if len({o[:n] for o in outputs}) == len(outputs))
        assert _all_differ(outputs) == next(apart, shortest)


def test_tree_search_walks_the_upper_bounds():
    root = Node(visits=10, total=5.0)
    often, rare = Node((1,), visits=8, total=4.8), Node((2,), visits=2, total=0.2)
    root.children = {(1,): often, (2,): rare}
    assert select(root, 0.0) == [root, often]
    assert select(root, 5.0) == [root, rare]
    assert rare.bound(10, 2.0) == pytest.approx(0.1 + 2.0 * np.sqrt(np.log(10) / 2))


def test_longest_path():
    def node(parent, count):
        return CatNode(parent, tuple(range(count)), (), (), None, None, "closed", None)

    for nodes in ((node(-1, 3), node(-1, 5), node(0, 4)), (node(-1, 3), node(0, 4), node(-1, 5))):
        assert longest_path(CatTree("q", (0,), nodes, (0, 0), None)) == 7


def test_greedy_costs_its_prompt_and_its_tokens(monkeypatch):
    question = Question("q", "?", gold="1")
    context = Context(None, None, [question], None, str, lambda *_: True, same)
    monkeypatch.setattr(single_module, "generate", lambda *_, **__: [trace(range(7), "1")])
    (found,) = greedy(context, Settings())
    assert (found.answer, found.tokens, found.calls) == ("1", 7, 1 + 7)


def test_seconds_are_a_question(monkeypatch):
    clock = iter((100.0, 112.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    (found,) = timed(lambda: [Answer("s", "1", "q", None, None, 1, 2)], 4)
    assert found.seconds == 3.0


def test_an_output_is_held_against_the_beginning_of_a_text_even_where_its_id_is_0(monkeypatch):
    def measured(model, traces, fields, beginning):
        found.append(beginning)
        ones = np.ones(2)
        kept = TokenStats(entropy=ones, top1_logprob=-ones, mean_top20_logprob=-ones, uniform_kl=ones)
        return [kept] * len(traces), [ones] * len(traces)

    found: list = []
    monkeypatch.setattr(pool_module, "statistics_and_kl", measured)
    monkeypatch.setattr(pool_module, "eos_ids", lambda config, tokenizer: (7,))
    one = dataclasses.replace(trace((1, 2), "1"), logprob=(-1.0, -0.5))
    for bos in (0, None):
        tokenizer = types.SimpleNamespace(bos_token_id=bos)
        context = Context(
            types.SimpleNamespace(config=None),
            tokenizer,
            [Question("q", "?")],
            None,
            str,
            lambda *_: True,
            same,
        )
        pool = with_statistics(Pool([[one]], [], [], []), context, Settings())
        assert (pool.samples[0][0].logprob, pool.samples[0][0].tokens) == (-1.5, 2)
    assert found == [0, 7]


def test_names():
    assert check_names(["all"]) == STRATEGIES
    assert check_names(["cat", "greedy"]) == ("greedy", "cat")
    with pytest.raises(UserError, match="unknown strategy nothing"):
        check_names(["nothing"])
    assert families(check_names(["sequence_vote", "kappa", "cat"])) == {
        "pool": ("sequence_vote", "kappa"),
        "cat": ("cat",),
    }
    assert Settings().sizes(12) == (1, 2, 4, 8, 12)
    assert Settings().sizes(8) == (1, 2, 4, 8)
    assert dataclasses.replace(Settings(), samples=1).sizes(1) == (1,)
