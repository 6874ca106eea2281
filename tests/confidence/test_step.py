import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.confidence import (
    BOUNDED_STEPS,
    STEP_CONFIDENCES,
    TOKEN_FIELDS,
    TokenStats,
    needed_fields,
    step_confidence,
    token_stats,
)
from caspo_jax.errors import UserError

_spec = importlib.util.spec_from_file_location("reference", pathlib.Path(__file__).with_name("reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

VOCAB = 30
T = 23
NAMES = (
    "entropy", "max_entropy", "tail_entropy", "first_token", "normalised", "mean_logprob", "sum_logprob",
    "max_prob", "margin", "deepconf", "self_certainty",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokens():
    """[3, T] tokens: logits, ids and reference rows."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, T, VOCAB)).astype(np.float32)
    ids = rng.integers(VOCAB, size=(3, T))
    rows = [[reference.stats_row(logits[b, t], ids[b, t]) for t in range(T)] for b in range(3)]
    return token_stats(logits, ids), rows


@jax.jit
def on_device(stats, mask):
    return {name: step_confidence(name, stats, mask, VOCAB) for name in NAMES}


def on_host(stats):
    return jax.tree.map(np.asarray, stats)


def test_names():
    assert tuple(STEP_CONFIDENCES) == NAMES
    assert set(NAMES) - set(BOUNDED_STEPS) == {"deepconf", "self_certainty"}


@pytest.mark.parametrize("count", [1, 10, 11, T])
def test_against_the_definition(tokens, count):
    stats, rows = tokens
    mask = np.random.default_rng(count).permuted(np.tile(np.arange(T) < count, (3, 1)), axis=1)
    device = on_device(stats, mask)
    for name in NAMES:
        chosen = [[row for row, keep in zip(rows[b], mask[b]) if keep] for b in range(3)]
        want = [reference.step_confidence(name, tokens, VOCAB) for tokens in chosen]
        host = step_confidence(name, on_host(stats), mask, VOCAB)
        assert isinstance(host, np.ndarray)
        assert host.dtype == np.float64
        np.testing.assert_allclose(host, want, rtol=2e-5, err_msg=name)
        assert device[name].dtype == jnp.float32
        np.testing.assert_allclose(device[name], want, rtol=1e-4, atol=1e-37, err_msg=name)


def test_by_table():
    stats = TokenStats(entropy=np.array([0.1, 0.4, 0.9]))
    assert STEP_CONFIDENCES["entropy"](stats, np.array([True, False, True])) == pytest.approx(np.exp(-0.5))


@pytest.mark.parametrize("name", NAMES)
def test_needs_only_its_fields_and_ignores_what_is_masked(tokens, name):
    stats, _ = tokens
    mask = np.arange(T) < 9
    full = step_confidence(name, on_host(stats), np.tile(mask, (3, 1)), VOCAB)
    poisoned = TokenStats(
        **{field: np.where(mask, np.asarray(getattr(stats, field)), np.nan) for field in needed_fields(name)}
    )
    for row in range(3):
        alone = jax.tree.map(lambda leaf, r=row: leaf[r], poisoned)
        assert step_confidence(name, alone, mask, VOCAB) == full[row]
        assert step_confidence(
            name, jax.tree.map(lambda leaf: leaf[:9], alone), mask[:9], VOCAB
        ) == pytest.approx(full[row], rel=1e-12)
    with pytest.raises(UserError, match="ask for it in fields"):
        step_confidence(name, TokenStats(), mask, VOCAB)


def test_empty_step_is_nan(tokens):
    stats, _ = tokens
    mask = np.zeros((3, T), bool)
    mask[1, 4] = True
    device = on_device(stats, mask)
    no_tokens = jax.tree.map(lambda leaf: leaf[:, :0], on_host(stats))
    for name in NAMES:
        for value in (step_confidence(name, on_host(stats), mask, VOCAB), device[name]):
            assert np.isnan(value).tolist() == [True, False, True], name
        assert np.isnan(step_confidence(name, no_tokens, mask[:, :0], VOCAB)).all()


def test_uniform_and_certain_tokens():
    uniform = on_host(token_stats(np.zeros((2, VOCAB), np.float32), np.zeros(2, int)))
    certain = on_host(token_stats(np.eye(1, VOCAB, dtype=np.float32) * 1e4, np.zeros(1, int)))
    at = lambda name, stats, n: float(step_confidence(name, stats, np.ones(n, bool), VOCAB))  # noqa: E731
    for name in ("entropy", "max_entropy", "first_token", "mean_logprob", "max_prob"):
        assert at(name, uniform, 2) == pytest.approx(1 / VOCAB, rel=1e-5)
        assert at(name, certain, 1) == 1.0
    assert at("normalised", uniform, 2) == pytest.approx(0.0, abs=1e-6)
    rounded = TokenStats(entropy=np.full(2, np.log(VOCAB) * (1 + 1e-7)))
    assert at("normalised", rounded, 2) == 0.0
    assert at("sum_logprob", uniform, 2) == pytest.approx(1 / VOCAB**2, rel=1e-5)
    assert at("margin", uniform, 2) == 0.0
    assert at("self_certainty", uniform, 2) == pytest.approx(0.0, abs=1e-6)
    assert at("deepconf", uniform, 2) == pytest.approx(np.log(VOCAB), rel=1e-5)


def test_bad_arguments(tokens):
    stats, _ = tokens
    with pytest.raises(UserError, match="unknown step confidence 'entropie'"):
        step_confidence("entropie", stats, np.ones((3, T), bool))
    with pytest.raises(UserError, match="unknown step confidence"):
        needed_fields("nothing")
    with pytest.raises(UserError, match="vocab_size >= 2"):
        step_confidence("normalised", stats, np.ones((3, T), bool))
    assert all(set(needed_fields(name)) <= set(TOKEN_FIELDS) for name in NAMES)
    for width in (1, T - 1):
        for call in (step_confidence, jax.jit(step_confidence, static_argnums=0)):
            with pytest.raises(
                UserError, match=rf"mask of shape \(3, {width}\) does not match entropy of shape"
            ):
                call("entropy", stats, np.ones((3, width), bool))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 12))
def test_padding_changes_nothing(seed, pad):
    rng = np.random.default_rng(seed)
    mask = rng.random(8) < 0.7
    fields = {f: -rng.random(8) * 3 for f in TOKEN_FIELDS} | {"entropy": rng.random(8) * 3}
    padded = TokenStats(**{f: np.concatenate([v, rng.normal(size=pad) * 50]) for f, v in fields.items()})
    for name in NAMES:
        plain = step_confidence(name, TokenStats(**fields), mask, VOCAB)
        longer = step_confidence(name, padded, np.concatenate([mask, np.zeros(pad, bool)]), VOCAB)
        np.testing.assert_allclose(longer, plain, rtol=1e-12)
