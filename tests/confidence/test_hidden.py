import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.confidence import rcc
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
