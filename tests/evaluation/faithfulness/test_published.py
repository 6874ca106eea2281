"""Every published number against plain loops written from the formulas: unseen arrays, float32, and the edges."""

import inspect
import itertools
import math

import numpy as np
import pytest

import caspo_jax as cj
from caspo_jax.confidence import rcc_batch
from caspo_jax.evaluation.faithfulness import Subject, token_values
from caspo_jax.evaluation.faithfulness.table import trace_means
from caspo_jax.types import Step, Trace

TOLERANCE = 1e-5


def q_and_p(hidden, prompt_length, step_lengths, top1, mu=0.5, delta=0.4):
    """RCC, one number at a time."""
    width = len(hidden[0])
    start, blocks, probabilities = prompt_length, [hidden[:prompt_length]], []
    for n in step_lengths:
        blocks.append(hidden[start : start + n])
        probabilities.append(top1[start - prompt_length : start - prompt_length + n])
        start += n
    q, p = [], []
    for i, c in enumerate(probabilities):
        reached = []
        for row in blocks[i]:
            scores = [
                sum(float(a) * float(b) for a, b in zip(row, key)) / math.sqrt(width) for key in blocks[i + 1]
            ]
            total = sum(math.exp(s - max(scores)) for s in scores)
            r = sum(float(x) for s, x in zip(scores, c) if math.exp(s - max(scores)) / total >= mu)
            if r != 0:
                reached.append(r)
        q.append(sum(reached) / len(reached) if reached else 0.0)
        p.append(q[0] if i == 0 else delta * q[i] + (1 - delta) * p[-1])
    return q, p


def step_token(logprobs):
    """clip(v / 8) of one step, v the mean over its tokens of -mean of the five highest log-probs."""
    per_token = [-sum(sorted(row, reverse=True)[:5]) / 5 for row in logprobs]
    return min(1.0, max(0.0, sum(per_token) / len(per_token) / 8))


def equal_width(f, c, bins=10):
    total = 0.0
    for b in range(bins):
        inside = [x for x, y in zip(f, c) if b / bins <= y < (b + 1) / bins or (b == bins - 1 and y == 1)]
        total += sum(inside) / len(inside) if inside else 0.5
    return total / bins


def equal_mass(f, c, bins=10):
    pairs = sorted(zip(c, range(len(c))), key=lambda pair: pair[0])
    count = min(bins, len(pairs))
    sizes = [len(pairs) // count + (b < len(pairs) % count) for b in range(count)]
    cut, start = [], 0
    for size in sizes:
        cut.append(pairs[start : start + size])
        start += size
    means = [sum(f[i] for _, i in part) / len(part) for part in cut]
    low = [cut[0][0][0]] + [(a[-1][0] + b[0][0]) / 2 for a, b in itertools.pairwise(cut)]
    high = [*low[1:], cut[-1][-1][0]]
    widths = [b - a for a, b in zip(low, high)]
    if sum(widths) == 0:
        return sum(means) / count
    return sum(w * m for w, m in zip(widths, means)) / sum(widths)


def test_the_signature_is_the_documented_one():
    parameters = inspect.signature(cj.confidence.rcc).parameters
    assert list(parameters) == ["hidden", "prompt_length", "step_lengths", "top1_prob", "mu", "delta"]
    assert (parameters["mu"].default, parameters["delta"].default) == (0.5, 0.4)
    for name in ("cmfg", "cmfg_star"):
        assert inspect.signature(getattr(cj.metrics, name)).parameters["bins"].default == 10


@pytest.mark.parametrize("seed", range(40))
def test_rcc(seed):
    """Steps of one token, of many, states of every scale (attention from flat to one-hot), all in float32."""
    rng = np.random.default_rng(seed)
    lengths = [int(n) for n in rng.integers(1, rng.choice([2, 4, 12]), size=rng.integers(1, 7))]
    prompt = int(rng.integers(1, 9))
    scale = rng.choice([0.1, 1.0, 4.0])
    hidden = (scale * rng.normal(size=(prompt + sum(lengths), int(rng.choice([2, 7, 16]))))).astype(
        np.float32
    )
    top1 = rng.random(sum(lengths)).astype(np.float32)
    mu, delta = (0.5, 0.4) if seed % 2 else (float(rng.uniform(0.05, 0.9)), float(rng.random()))
    q, p = cj.confidence.rcc(hidden, prompt, lengths, top1, mu, delta)
    want_q, want_p = q_and_p(hidden, prompt, lengths, top1, mu, delta)
    np.testing.assert_allclose(q, want_q, atol=TOLERANCE)
    np.testing.assert_allclose(p, want_p, atol=TOLERANCE)
    for found in (q, p):
        assert isinstance(found, np.ndarray)
        assert found.shape == (len(lengths),)


def test_rcc_at_its_edges():
    rng = np.random.default_rng(0)
    # Twelve tokens that share the attention: none reaches mu, all r are 0, so q is 0 and p decays.
    flat = np.zeros((14, 3), np.float32)
    top1 = np.full(13, 0.9, np.float32)
    q, p = cj.confidence.rcc(flat, 1, [1, 12], top1)
    assert q.tolist() == pytest.approx([0.9, 0.0])
    assert p.tolist() == pytest.approx([0.9, 0.6 * 0.9])
    np.testing.assert_allclose((q, p), q_and_p(flat, 1, [1, 12], top1), atol=TOLERANCE)
    # Top-1 probabilities of 0 give r of 0, which are left out of the mean.
    hidden = 3 * rng.normal(size=(9, 4)).astype(np.float32)
    zeros = np.zeros(6, np.float32)
    assert cj.confidence.rcc(hidden, 3, [6], zeros)[0].tolist() == [0.0]
    some = np.where(np.arange(6) % 2, 0.0, 0.7).astype(np.float32)
    np.testing.assert_allclose(
        cj.confidence.rcc(hidden, 3, [2, 4], some), q_and_p(hidden, 3, [2, 4], some), atol=TOLERANCE
    )
    assert cj.confidence.rcc(hidden, 0, [9], np.ones(9)) == (None, None)


@pytest.mark.parametrize("seed", range(3))
def test_rcc_of_a_batch(seed):
    """What the report runs: many traces at once on the device; one compiled shape for all seeds."""
    rng = np.random.default_rng(100 + seed)
    hidden = (rng.choice([0.5, 2.0]) * rng.normal(size=(4, 48, 6))).astype(np.float32)
    top1 = rng.random((4, 48)).astype(np.float32)
    bounds = np.zeros((4, 7), np.int32)
    for row in bounds:
        cuts = np.sort(rng.choice(np.arange(1, 48), size=rng.integers(2, 7), replace=False))
        row[1:] = cuts[-1]
        row[1 : 1 + cuts.size] = cuts
    q, p = (np.asarray(x) for x in rcc_batch(hidden, top1, bounds, block=16))
    for i, row in enumerate(bounds):
        lengths = [int(n) for n in np.diff(row[1:]) if n]
        end = row[1] + sum(lengths)
        want = q_and_p(hidden[i, :end], int(row[1]), lengths, top1[i, row[1] : end])
        np.testing.assert_allclose(q[i, : len(lengths)], want[0], atol=TOLERANCE)
        np.testing.assert_allclose(p[i, : len(lengths)], want[1], atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(10))
def test_token_of_steps_and_of_the_trace(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, size=rng.integers(1, 5))
    logits = rng.choice([0.3, 3.0, 30.0]) * rng.normal(size=(lengths.sum(), 12))
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    top5 = np.sort(logprobs, axis=1)[:, -5:].mean(axis=1).astype(np.float32)
    ends = np.cumsum(lengths)
    steps = tuple(Step(i, i + 1, int(e - n), int(e), "x") for i, (e, n) in enumerate(zip(ends, lengths)))
    ids = tuple(range(int(lengths.sum())))
    trace = Trace("t", "q", None, None, (1,), ids, "x" * len(steps), "eos", steps=steps)
    found = token_values(Subject(trace, "q", "none", False, (), tuple(top5.tolist()), ()), None)["token"]
    want = [step_token(logprobs[e - n : e]) for e, n in zip(ends, lengths)]
    np.testing.assert_allclose(found, want, atol=TOLERANCE)

    class OneTrace:
        trace, trace_ids = np.zeros(len(want), np.int64), ("t",)

    assert trace_means(np.array(found), OneTrace)[0] == pytest.approx(np.mean(want), abs=TOLERANCE)


def arrays(rng):
    """F and C with what reports hold: shares, ties, confidences of exactly 0 and 1, few items, many."""
    n = int(rng.choice([1, 2, 3, 9, 10, 11, 50, 173]))
    c = rng.choice([rng.random(n), rng.integers(0, 17, n) / 16, np.full(n, rng.random()), rng.beta(9, 1, n)])
    c = np.where(rng.random(n) < 0.1, 1.0, np.where(rng.random(n) < 0.1, 0.0, c))
    return 1 - np.abs(rng.random(n) - c), c


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_mfg_cmfg_and_cmfg_star(seed, dtype):
    rng = np.random.default_rng(seed)
    f, c = (x.astype(dtype) for x in arrays(rng))
    bins = int(rng.choice([10, 10, 1, 4]))
    assert cj.metrics.mfg(f) == pytest.approx(sum(map(float, f)) / len(f), abs=TOLERANCE)
    plain = ([float(x) for x in f], [float(x) for x in c], bins)
    assert cj.metrics.cmfg(f, c, bins) == pytest.approx(equal_width(*plain), abs=TOLERANCE)
    assert cj.metrics.cmfg_star(f, c, bins) == pytest.approx(equal_mass(*plain), abs=TOLERANCE)
    # A missing value of either kind is dropped, and so is its partner.
    mask = rng.random(f.size) < 0.3
    for missing in (None, float("nan")):
        holes = [missing if m else float(x) for m, x in zip(mask, f)]
        for metric in (cj.metrics.cmfg, cj.metrics.cmfg_star):
            kept = metric(f[~mask], c[~mask])
            assert metric(holes, c) == pytest.approx(kept, abs=TOLERANCE, nan_ok=True)


def test_confidences_of_exactly_zero_and_one_are_counted():
    assert cj.metrics.cmfg([0.2, 0.9], [0.0, 1.0]) == pytest.approx((0.2 + 0.9 + 8 * 0.5) / 10)
    assert cj.metrics.cmfg_star([0.2, 0.9], [0.0, 1.0]) == pytest.approx(0.55)
    tied = [0.1, 0.2, 0.9, 0.5, 0.4, 0.3, 0.7, 0.8, 0.6, 0.0, 1.0]
    assert cj.metrics.cmfg_star(tied, [0.5] * 11) == pytest.approx(equal_mass(tied, [0.5] * 11))
