"""Given traces through a model: against NumPy on its logits and states, alone and in a batch."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.confidence import rcc
from caspo_jax.confidence.forced import StepRow, _measure, _pad, measure, plan_batches, steps_by_width
from caspo_jax.errors import UserError
from caspo_jax.models import Decoder, RopeConfig
from caspo_jax.padding import MOST_TOKENS
from tests.shapes import small_shape

VOCAB, WIDTH = 13, 16
ROWS = (
    StepRow((1, 2, 3), tuple(range(12)), (0, 5, 6, 12)),
    StepRow((4,), (5, 6, 7, 8, 9, 10, 11), (2, 4, 6)),  # a tag before the steps, an end after them
    StepRow((), (1, 2, 3, 4), (1, 4)),  # no prompt: the first token's distribution is unknown
    StepRow((3, 3), (2, 2, 2), ()),  # no steps
)


@pytest.fixture(scope="module")
def model():
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "max_position_embeddings": 128}
    config = small_shape(**sizes, initializer_range=0.4)
    return Decoder(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def found(model):
    return measure(model, ROWS, features=True)


def reference(model, row):
    """Statistics of the output tokens, states before the final norm, top-1 probabilities; in NumPy float64."""
    ids = jnp.array([row.prompt_ids + row.token_ids])
    logits = np.asarray(model(ids), np.float64)[0]
    logp = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    states = np.asarray(model.hidden_states(ids, final_norm=False), np.float64)[0]
    first = len(row.prompt_ids)
    stats = {name: np.full(len(row.token_ids), np.nan) for name in ("entropy", "logprob", "top1", "top5")}
    for t, token in enumerate(row.token_ids):
        if first + t:
            before = logp[first + t - 1]
            stats["entropy"][t] = -np.sum(np.exp(before) * before)
            stats["logprob"][t] = before[token]
            stats["top1"][t] = before.max()
            stats["top5"][t] = np.sort(before)[-5:].mean()
    return stats, states


@pytest.mark.parametrize("i", range(4))
def test_against_numpy(model, found, i):
    row, got = ROWS[i], found[i]
    stats, states = reference(model, row)
    for name, field in (
        ("entropy", "entropy"),
        ("logprob", "logprob"),
        ("top1", "top1_logprob"),
        ("top5", "mean_top5_logprob"),
    ):
        np.testing.assert_allclose(got.stats[field], stats[name], atol=2e-5)
    steps = np.diff(row.starts) if row.steps else []
    assert got.q.shape == got.p.shape == (row.steps,)
    for k, (start, end) in enumerate(zip(row.starts, row.starts[1:])):
        own = states[len(row.prompt_ids) + start : len(row.prompt_ids) + end]
        np.testing.assert_allclose(got.features[k], np.concatenate([own.mean(0), own[-1]]), atol=2e-5)
    if row.steps:
        prompt = len(row.prompt_ids) + row.starts[0]
        end = len(row.prompt_ids) + row.starts[-1]
        top1 = np.exp(stats["top1"][row.starts[0] : row.starts[-1]])
        q, p = rcc(states[:end], prompt, steps, top1)
        np.testing.assert_allclose(got.q, q, atol=1e-4)
        np.testing.assert_allclose(got.p, p, atol=1e-4)


def test_a_row_alone_is_the_row_in_a_batch(model, found):
    for row, together in zip(ROWS, found):
        (alone,) = measure(model, [row], features=True)
        for name, values in alone.stats.items():
            np.testing.assert_allclose(values, together.stats[name], atol=1e-5)
        np.testing.assert_allclose(alone.q, together.q, atol=1e-5)
        np.testing.assert_allclose(alone.p, together.p, atol=1e-5)
        np.testing.assert_allclose(alone.features, together.features, atol=1e-5)


def test_after_the_final_norm_is_another_estimate(model, found):
    (after,) = measure(model, ROWS[:1], rcc=False, features=True, final_norm=True)
    row = ROWS[0]
    states = np.asarray(model.hidden_states(jnp.array([row.prompt_ids + row.token_ids])), np.float64)[0]
    own = states[3:8]
    np.testing.assert_allclose(after.features[0], np.concatenate([own.mean(0), own[-1]]), atol=2e-5)
    assert np.abs(after.features - found[0].features).max() > 1e-2


def test_batches_hold_every_row_once_and_like_lengths(model):
    rows = [StepRow((1,), (2,) * n, (0, n)) for n in (3, 100, 5, 90, 60, 70)]
    batches = plan_batches(rows, batch_tokens=256)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    for batch in batches:
        longest = max(-(-rows[i].length // 64) * 64 for i in batch)
        assert longest * len(batch) <= 256
    short = [StepRow((1,), (2,) * n, (0, n)) for n in (3, 20, 5)]
    seen = {}
    for batch in plan_batches(short, batch_tokens=64):
        seen |= zip(batch, measure(model, [short[i] for i in batch], features=True))
    assert [seen[i].stats["entropy"].shape for i in range(3)] == [(3,), (20,), (5,)]


def test_a_full_batch_is_hardly_padded_and_few_shapes_are_compiled():
    lengths = np.random.default_rng(0).integers(300, 1800, 5000)
    rows = [StepRow((1,), (2,) * n, (0, n)) for n in lengths.tolist()]
    arrays = [_pad([rows[i] for i in batch])[0] for batch in plan_batches(rows)]
    padded = sum(ids.size for ids, _, _ in arrays)
    assert padded < 1.25 * lengths.sum()
    assert max(ids.size for ids, _, _ in arrays) < 1.25 * MOST_TOKENS
    assert len({ids.shape for ids, _, _ in arrays}) < 60
    assert [len(_pad(rows[:n])[0][0]) for n in (1, 2, 3, 5, 8, 9, 17)] == [1, 2, 4, 8, 8, 12, 20]


def test_batches_of_one_width_share_a_program_however_many_steps_they_have(model):
    rows = [StepRow((1, 2), (3, 4, 5) * 20, (*range(n), 60)) for n in (1, 9, 20, 27)]
    room = steps_by_width([*rows, StepRow((1,), (2,) * 100, (*range(70), 100))])
    assert room == {64: 27, 128: 70}
    before = _measure._cache_size()
    found = [measure(model, [row], features=True, room=room)[0] for row in rows]
    assert _measure._cache_size() == before + 1
    for row, one in zip(rows, found):
        (alone,) = measure(model, [row], features=True)
        for name in ("q", "p", "features"):
            assert len(getattr(one, name)) == row.steps
            np.testing.assert_allclose(getattr(one, name), getattr(alone, name), atol=1e-5)
    assert _measure._cache_size() > before + 2  # of numbers of their own


def test_a_batch_has_room_for_the_steps_of_every_row():
    """Whichever row has the most of them, and whichever has the longest."""
    rows = [
        StepRow((1,), (2,) * 40, starts) for starts in ((0, 1), tuple(range(11)), (0, 39), (3, 4, 40), ())
    ]
    for order in (rows, rows[::-1]):
        (token_ids, mask, bounds), block = _pad(order)
        assert block == 64
        assert bounds.shape[1] == 16 + 2
        for row, ids, real, found in zip(order, token_ids, mask, bounds):
            assert ids[real].tolist() == [1] + [2] * 40
            ends = [1 + start for start in row.starts] or [1]
            assert found.tolist() == [0, *ends] + [ends[-1]] * (17 - len(ends))


def test_bad_rows(model):
    with pytest.raises(UserError, match="empty step"):
        StepRow((1,), (2, 3), (0, 1, 1))
    with pytest.raises(UserError, match="outside the 2 token_ids"):
        StepRow((1,), (2, 3), (0, 3))
    with pytest.raises(UserError, match=r"mu = 1\.5"):
        measure(model, [StepRow((1,), (2,), (0, 1))], mu=1.5)
    with pytest.raises(UserError, match="no tokens"):
        measure(model, [StepRow((1,), (), ())])
    with pytest.raises(UserError, match="token id 99 is outside"):
        measure(model, [StepRow((1,), (99,), (0, 1))])
    with pytest.raises(UserError, match=r"exceed the model's context of 128 \(config.json: max_position"):
        measure(model, [StepRow((1,), (2,) * 200, (0, 200))])


def test_rows_may_be_as_long_as_yarn_makes_the_context():
    rope = RopeConfig("yarn", factor=4.0, original_max_position_embeddings=8)
    config = small_shape(vocab_size=VOCAB, hidden_size=WIDTH, max_position_embeddings=8, rope=rope)
    model = Decoder(config, rngs=nnx.Rngs(0))
    (found,) = measure(model, [StepRow((1,), (2,) * 31, (0, 31))])
    assert np.isfinite(found.stats["entropy"]).all()
    with pytest.raises(UserError, match=r"context of 32 .*factor in rope_scaling"):
        measure(model, [StepRow((1,), (2,) * 32, (0, 32))])
