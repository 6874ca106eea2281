import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caspo_jax.confidence import TOKEN_FIELDS, token_stats
from caspo_jax.errors import UserError

_spec = importlib.util.spec_from_file_location("reference", pathlib.Path(__file__).with_name("reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

INF = np.inf
EXTREME = {
    "two tokens": [[0.3, -1.2], [5.0, 5.0], [0.0, -INF], [1e4, -1e4]],
    "one token": [[3.0], [-1e4]],
    "huge": [
        [1e4, -1e4, 0.0, 1e4],
        [-1e4, -1e4, -1e4, -1e4],
        [1e4, 9999.0, -INF, -INF],
        [0.0, -3e38, -3e38, 1.0],
    ],
    "holes": [[-INF] * 25 + [1.0, 2.0, -INF, 0.5], [-INF] * 28 + [7.0], [0.0] * 29, list(range(29))],
    "peaked": [[30.0] + [0.0] * 30, [60.0] + [0.0] * 30, [100.0] + [-100.0] * 30, [12.0, 12.0] + [0.0] * 29],
}


def expected(logits, ids):
    rows = [reference.stats_row(row, token) for row, token in zip(logits, ids)]
    return {name: np.array([row[name] for row in rows]) for name in TOKEN_FIELDS}


def assert_close(stats, want, tolerance=1e-5):
    for name in TOKEN_FIELDS:
        got = np.asarray(getattr(stats, name))
        assert got.dtype == (np.int32 if name.endswith("id") else np.float32)
        # Relative where the value itself is huge (a log-prob of -2e4 has 1e-3 between float32 neighbours).
        np.testing.assert_allclose(got, want[name], rtol=1e-6, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", EXTREME)
def test_extreme_logits(case):
    logits = np.array(EXTREME[case], np.float32)
    for token in {0, logits.shape[1] // 2, logits.shape[1] - 1}:
        ids = np.full(len(logits), token)
        want = expected(logits, ids)
        assert_close(token_stats(logits, ids), want)
    # The runner-up alone is found in another way than among the top 20.
    two = token_stats(logits, fields=("top1_id", "top2_id", "top2_logprob"))
    np.testing.assert_array_equal(two.top1_id, want["top1_id"])
    np.testing.assert_array_equal(two.top2_id, want["top2_id"])
    np.testing.assert_allclose(two.top2_logprob, want["top2_logprob"], rtol=1e-6, atol=1e-5)


def test_no_divergence_is_negative():
    logits = 1e-4 * np.random.default_rng(5).normal(size=(50, 24)).astype(np.float32)
    assert np.asarray(token_stats(logits, fields="uniform_kl").uniform_kl).min() >= 0


def test_large_vocabulary():
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(4, 152_064)) * np.array([[0.0], [0.1], [3.0], [8.0]])).astype(np.float32)
    logits[2, rng.integers(152_064, size=100_000)] = -INF
    ids = logits.argmax(-1)
    assert_close(token_stats(logits, ids), expected(logits, ids))


def test_zeros_of_either_sign_tie():
    for fields in (None, ("top1_id", "top2_id")):
        stats = token_stats(np.array([[-0.0, 0.0, -1.0]], np.float32), np.zeros(1, int), fields)
        assert (int(stats.top1_id[0]), int(stats.top2_id[0])) == (0, 1)


def test_bf16_input_is_widened_before_anything_else():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(6, 300)) * 4, jnp.bfloat16)
    ids = np.arange(6)
    assert_close(token_stats(logits, ids), expected(np.asarray(logits, np.float64), ids))


def test_peaked_distributions_keep_small_entropies():
    logits = np.zeros((1, 1000), np.float32)
    logits[0, 3] = 25.0
    got = float(token_stats(logits, np.array([3])).entropy[0])
    assert got == pytest.approx(float(reference.entropy(logits[0])), rel=0.1)
    assert got > 0


def test_row_without_a_distribution():
    logits = np.zeros((2, 3, 7), np.float32)
    logits[1, 2] = -INF
    ids = np.zeros((2, 3), int)
    with pytest.raises(UserError, match="nothing but -inf"):
        token_stats(logits, ids)
    with pytest.raises(UserError, match="nothing but -inf"):
        token_stats(logits, ids, fields=("entropy",))
    stats = jax.jit(token_stats)(logits, ids)
    for name in TOKEN_FIELDS:
        value = np.asarray(getattr(stats, name))
        if name.endswith("id"):
            continue
        undefined = ~np.isfinite(value) if name == "logsumexp" else np.isnan(value)
        assert undefined[1, 2], name
        assert undefined.sum() == 1, name


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_plus_inf_raise(bad):
    logits = np.zeros((1, 4), np.float32)
    logits[0, 1] = bad
    with pytest.raises(UserError):
        token_stats(logits, np.array([0]))


def test_bad_arguments():
    logits = np.zeros((2, 4), np.float32)
    with pytest.raises(UserError, match="outside the vocabulary"):
        token_stats(logits, np.array([0, 4]))
    with pytest.raises(UserError, match="outside the vocabulary"):
        token_stats(logits, np.array([0, -1]))
    with pytest.raises(UserError, match=r"\(3,\)"):
        token_stats(logits, np.array([0, 1, 2]))
    with pytest.raises(UserError, match="unknown field 'entropi'"):
        token_stats(logits, np.array([0, 1]), fields=("entropi",))
    with pytest.raises(UserError, match="needs token_ids"):
        token_stats(logits, fields=("logprob",))
    assert np.isnan(jax.jit(token_stats)(logits, np.array([0, 4])).logprob[1])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int64, list])
def test_ids_of_any_integer_type(dtype):
    """A vocabulary of 300 is out of the range of the narrow ones."""
    logits = np.random.default_rng(4).normal(size=(3, 300)).astype(np.float32)
    ids = [0, 5, 100]
    want = expected(logits, ids)["logprob"]
    given = ids if dtype is list else np.array(ids, dtype)
    for stats in (token_stats(logits, given), jax.jit(token_stats)(logits, np.asarray(given))):
        np.testing.assert_allclose(stats.logprob, want, atol=1e-5)
    with pytest.raises(UserError, match="must be integers, not float32"):
        token_stats(logits, np.array(ids, np.float32))


def test_no_token_at_all():
    stats = token_stats(np.zeros((2, 0, 30), np.float32), np.zeros((2, 0), int))
    assert all(np.shape(getattr(stats, name)) == (2, 0) for name in TOKEN_FIELDS)


def test_one_field_by_its_name():
    stats = token_stats(np.zeros((1, 4), np.float32), fields="entropy")
    assert stats.entropy[0] == pytest.approx(np.log(4))
    assert stats.logprob is None


def test_gradients_are_numbers_where_a_logit_is_minus_inf():
    """d H / d x_v = -p_v (log p_v + H); a token of probability 0 has none."""
    floats = tuple(name for name in TOKEN_FIELDS if not name.endswith("id"))
    slopes = jax.jit(jax.jacrev(lambda x: token_stats(x, jnp.int32(1), floats)))(
        jnp.array([-INF, 0.0, 1.0, -200.0])
    )
    for name in floats:
        assert np.isfinite(getattr(slopes, name)).all(), name
    p = np.array([0.0, 1.0, np.e, 0.0]) / (1 + np.e)
    h = -np.sum(p[1:3] * np.log(p[1:3]))
    want = [0.0, *(-p[1:3] * (np.log(p[1:3]) + h)), 0.0]
    np.testing.assert_allclose(slopes.entropy, want, atol=1e-6)


def test_fields_select_without_changing_values():
    logits = np.random.default_rng(2).normal(size=(3, 5, 40)).astype(np.float32)
    ids = np.random.default_rng(3).integers(40, size=(3, 5))
    everything = token_stats(logits, ids)
    for subset in (
        ("entropy", "logprob"),
        ("top1_id", "top2_id", "top1_logprob", "top2_logprob"),
        ("uniform_kl",),
    ):
        some = token_stats(logits, ids, fields=subset)
        for name in TOKEN_FIELDS:
            if name in subset:
                np.testing.assert_allclose(
                    getattr(some, name), getattr(everything, name), atol=1e-6, err_msg=name
                )
            else:
                assert getattr(some, name) is None
    assert token_stats(logits).logprob is None


def test_entropy_and_logprob_alone_need_no_top_k():
    text = str(
        jax.make_jaxpr(lambda x, i: token_stats(x, i, fields=("entropy", "logprob")))(
            np.zeros((2, 50), np.float32), np.zeros(2, int)
        )
    )
    assert "top_k" not in text
    assert " sort[" not in text
    assert text.count(" exp ") == 1


@settings(max_examples=40, deadline=None)
@given(
    logits=hnp.arrays(
        np.float32,
        (3, 24),
        # No subnormals: XLA flushes them to zero, and the order of two such logits means nothing.
        elements=st.one_of(
            st.floats(-60, 60, width=32, allow_subnormal=False), st.sampled_from([-INF, 0.0, 1e4, -1e4])
        ),
    ),
    ids=hnp.arrays(np.int64, 3, elements=st.integers(0, 23)),
)
def test_any_logits(logits, ids):
    logits[:, 0] = np.where(np.isfinite(logits).any(axis=1), logits[:, 0], 0.0)
    stats = token_stats(logits, ids)
    assert_close(stats, expected(logits, ids), 2e-5)
    h = np.asarray(stats.entropy)
    assert (h >= 0).all()
    assert (h <= np.log(24) + 1e-5).all()
    # A row alone equals the row in a batch; shifting all logits changes nothing but the log-sum-exp.
    alone = token_stats(logits[1:2], ids[1:2])
    for name in TOKEN_FIELDS:
        np.testing.assert_allclose(getattr(alone, name)[0], getattr(stats, name)[1], rtol=1e-6, atol=1e-6)
