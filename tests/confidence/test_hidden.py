import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.confidence import rcc, rcc_batch
from caspo_jax.errors import UserError


def loops(hidden, prompt_length, step_lengths, top1, mu, delta):
    """The published estimator, one scalar at a time."""
    width = hidden.shape[1]
    blocks, start = [hidden[:prompt_length]], prompt_length
    for n in step_lengths:
        blocks.append(hidden[start : start + n])
        start += n
    qs, ps, seen = [], [], 0
    for i, n in enumerate(step_lengths):
        found = []
        for query in blocks[i]:
            scores = [float(query @ key) / np.sqrt(width) for key in blocks[i + 1]]
            weights = [np.exp(s) / sum(np.exp(t) for t in scores) for s in scores]
            r = sum(top1[seen + j] for j in range(n) if weights[j] >= mu)
            if r != 0:
                found.append(r)
        qs.append(sum(found) / len(found) if found else 0.0)
        ps.append(qs[0] if i == 0 else delta * qs[i] + (1 - delta) * ps[-1])
        seen += n
    return qs, ps


@pytest.mark.parametrize("seed", range(4))
def test_against_loops(seed):
    rng = np.random.default_rng(seed)
    lengths = [3, 1, 6, 4]
    hidden = rng.normal(size=(5 + 14, 6))
    top1 = rng.uniform(0.1, 1, size=14)
    mu, delta = (0.5, 0.4) if seed % 2 else (0.2, 0.7)
    q, p = rcc(hidden, 5, lengths, top1, mu, delta)
    want_q, want_p = loops(hidden, 5, lengths, top1, mu, delta)
    np.testing.assert_allclose(q, want_q, atol=1e-12)
    np.testing.assert_allclose(p, want_p, atol=1e-12)
    assert isinstance(q, np.ndarray)
    q32, _ = rcc(jnp.asarray(hidden, jnp.float32), 5, lengths, jnp.asarray(top1, jnp.float32), mu, delta)
    np.testing.assert_allclose(q32, want_q, atol=1e-5)


def test_defaults_and_edges():
    same = np.ones((4, 3))
    # Two identical tokens attend 1/2 each, which reaches mu = 1/2; three attend 1/3 and do not.
    assert rcc(same, 2, [2], [0.9, 0.5])[0] == pytest.approx([1.4])
    assert rcc(np.ones((5, 3)), 2, [3], [0.9, 0.5, 0.1])[0] == pytest.approx([0.0])
    top1 = np.float32([[0, 0, 0.9, 0.5, 0]])
    for end, q in ((4, 1.4), (5, 0.0)):  # on the device too
        found, _ = rcc_batch(np.ones((1, 5, 3), np.float32), top1, np.int32([[0, 2, end]]), block=2)
        assert found[0] == pytest.approx([q])
    assert rcc(np.ones((3, 3)), 1, [1, 1], [0.9, 0.4])[1] == pytest.approx([0.9, 0.4 * 0.4 + 0.6 * 0.9])
    assert rcc(np.ones((2, 3)), 0, [2], [0.9, 0.4]) == (None, None)
    assert rcc(np.full((3, 2), 1e4), 1, [1, 1], [0.9, 0.4])[0] == pytest.approx([0.9, 0.4])


def test_lengths_must_add_up():
    with pytest.raises(UserError, match="all three must agree"):
        rcc(np.ones((5, 2)), 2, [2], [0.5, 0.5])
    with pytest.raises(UserError, match="all three must agree"):
        rcc(np.ones((5, 2)), 2, [3], [0.5, 0.5])
    with pytest.raises(UserError, match="empty step"):
        rcc(np.ones((4, 2)), 2, [2, 0], [0.5, 0.5])
    with pytest.raises(UserError, match=r"\[P \+ R, E\]"):
        rcc(np.ones(4), 2, [2], [0.5, 0.5])


@pytest.mark.parametrize(
    "name, value", [("mu", -0.1), ("mu", 1.5), ("delta", -0.1), ("delta", 3), ("mu", float("nan"))]
)
def test_settings_outside_their_range(name, value):
    """A weight in [0, 1] reaches no other threshold, and the running form is a mean only for a share."""
    with pytest.raises(UserError, match=rf"{name} = .*in \[0, 1\]"):
        rcc(np.ones((3, 2)), 1, [1, 1], [0.5, 0.5], **{name: value})
    with pytest.raises(UserError, match=rf"{name} = .*in \[0, 1\]"):
        rcc_batch(*padded(3, [1], [[1, 1]]), **{name: value})


def padded(seed, prompts, steps, extra=0, width=6):
    """Random traces of given prompt lengths and step lengths as rcc_batch takes them."""
    rng = np.random.default_rng(seed)
    length = max(p + sum(n) for p, n in zip(prompts, steps)) + extra
    count = max(map(len, steps)) + extra
    hidden = 2 * rng.normal(size=(len(prompts), length, width)).astype(np.float32)
    top1 = rng.uniform(0.1, 1, size=(len(prompts), length)).astype(np.float32)
    bounds = np.zeros((len(prompts), count + 2), np.int32)
    for row, (p, n) in enumerate(zip(prompts, steps)):
        ends = np.cumsum([p, *n])
        bounds[row, 1:] = ends[-1]
        bounds[row, 1 : 1 + len(ends)] = ends
    return hidden, top1, bounds


@pytest.mark.parametrize("block", [2, 5, 16])
@pytest.mark.parametrize("mu, delta", [(0.5, 0.4), (0.15, 0.7), (0.0, 1.0)])
def test_a_batch_in_tiles_is_each_trace_by_itself(block, mu, delta):
    prompts, steps = [5, 3, 12], [[3, 1, 11, 6], [20], [1, 1, 7]]
    hidden, top1, bounds = padded(3, prompts, steps, extra=3)
    q, p = (np.asarray(x) for x in rcc_batch(hidden, top1, bounds, mu, delta, block=block))
    for row, (prompt, lengths) in enumerate(zip(prompts, steps)):
        end = prompt + sum(lengths)
        want_q, want_p = rcc(hidden[row, :end], prompt, lengths, top1[row, prompt:end], mu, delta)
        np.testing.assert_allclose(q[row, : len(lengths)], want_q, atol=1e-5)
        np.testing.assert_allclose(p[row, : len(lengths)], want_p, atol=1e-5)
        assert np.isnan(q[row, len(lengths) :]).all()


def test_padding_never_matters_and_an_empty_prompt_is_null():
    hidden, top1, bounds = padded(4, [4, 6], [[3, 5], [2, 2]], extra=4)
    poisoned, poisoned_top1 = hidden.copy(), top1.copy()
    for row in range(2):
        poisoned[row, bounds[row, -1] :] = 1e3
        poisoned_top1[row, bounds[row, -1] :] = np.nan
        poisoned_top1[row, : bounds[row, 1]] = np.nan  # those of the prompt are not read either
    for clean, dirty in zip(
        rcc_batch(hidden, top1, bounds, block=4), rcc_batch(poisoned, poisoned_top1, bounds, block=4)
    ):
        np.testing.assert_array_equal(clean, dirty)
    bounds[1, 1] = 0
    q, p = rcc_batch(hidden, top1, bounds, block=4)
    assert np.isnan(q[1]).all()
    assert np.isnan(p[1]).all()
    assert np.isfinite(q[0, :2]).all()


def test_no_array_is_as_large_as_two_traces_squared():
    hidden, top1, bounds = padded(5, [300], [[200] * 9])
    batch = jax.jit(rcc_batch, static_argnames="block")
    memory = batch.lower(hidden, top1, bounds, block=16).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 2100**2 / 10


def test_each_token_s_attention_is_its_own_however_far_apart_the_scores_are():
    """States before the final norm are large: the first token's scores are thousands above the second's."""
    hidden = np.array([[60.0, 0.0], [0.0, 0.1], [60.0, 0.0], [0.0, 1.0]])
    q, _ = rcc(hidden, 2, [2], np.array([0.9, 0.5]))
    np.testing.assert_allclose(q, [0.7])  # (0.9 + 0.5) / 2: each looks at another token
    top1 = np.array([[0.0, 0.0, 0.9, 0.5]])
    found, _ = rcc_batch(hidden[None], top1, np.array([[0, 2, 4]]), block=2)
    np.testing.assert_allclose(found, [[0.7]], rtol=1e-6)
