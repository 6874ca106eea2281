"""Pairs to batches: what goes in comes out, and nothing is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.errors import UserError
from caspo_jax.preferences import batch_pairs, length_buckets, pack_pairs
from caspo_jax.types import Pair


def pair(i, prefix=2, chosen=3, rejected=2, weight=1.0):
    return Pair(
        id=f"p{i}",
        kind="wrong",
        prompt="",
        prefix="",
        chosen="c",
        rejected="r",
        prompt_ids=(100 + i,),
        prefix_ids=tuple(range(1, 1 + prefix)),
        chosen_ids=tuple(range(20, 20 + chosen)),
        rejected_ids=tuple(range(40, 40 + rejected)),
        ends_trace=(False, False),
        weight=weight,
    )


def unpack(rows):
    """(context, step) of every real row."""
    found = []
    for ids, mask, step in zip(rows.token_ids, rows.mask, rows.step_mask):
        if mask.any():
            assert np.all(mask[: mask.sum()])  # right-padded
            assert not np.any(step & ~mask)
            found.append((tuple(ids[mask & ~step].tolist()), tuple(ids[step].tolist())))
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)), max_size=12),
    st.integers(1, 4),
    st.none() | st.integers(0, 5),
)
def test_every_pair_comes_out_whole_or_is_counted(shapes, batch_size, seed):
    pairs = [pair(i, *shape) for i, shape in enumerate(shapes)]
    batches, counts = batch_pairs(pairs, (8, 12), batch_size, 20, seed=seed)  # a step's token pads as well
    found = []
    for batch in batches:
        assert batch.chosen.token_ids.shape == batch.rejected.token_ids.shape
        assert batch.chosen.token_ids.shape[0] == batch_size
        assert batch.chosen.token_ids.shape[1] in (8, 12)
        chosen, rejected = unpack(batch.chosen), unpack(batch.rejected)
        assert len(chosen) == len(rejected) == int(np.sum(batch.weight > 0)) > 0
        padding = batch.weight == 0
        assert not batch.chosen.step_mask[padding].any()
        assert np.all(np.isnan(batch.reference_chosen) == ~padding)
        assert np.all(np.isnan(batch.reference_rejected) == ~padding)
        for (context, step), (same, other) in zip(chosen, rejected):
            assert context == same
            found.append((context, step, other))
    fitting = [p for p in pairs if 1 + len(p.prefix_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) <= 12]
    assert sorted(found) == sorted(
        (p.prompt_ids + p.prefix_ids, p.chosen_ids, p.rejected_ids) for p in fitting
    )
    assert counts["too_long"] == len(pairs) - len(fitting)
    assert counts["items"] == len(fitting)


def test_too_long_pairs_can_be_refused():
    with pytest.raises(UserError, match="pair 'p1' has 12 tokens, the largest of length_buckets is 8"):
        batch_pairs([pair(0), pair(1, chosen=9)], (8,), 2, 0, too_long="error")
    with pytest.raises(UserError, match=r"pair 'p1' needs 12 tokens and does not fit into length=8"):
        pack_pairs([pair(0), pair(1, chosen=9)], 8, 0)


def test_seeds_order_and_weights():
    pairs = [pair(i, weight=0.5) for i in range(9)]

    def order(seed):
        return [int(b.chosen.token_ids[0, 0]) for b in batch_pairs(pairs, (8,), 1, 0, seed=seed)[0]]

    assert order(None) == list(range(100, 109))
    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == order(None)
    mixed = [pair(i, prefix=2 + 5 * (i % 2)) for i in range(12)]
    for seed, shuffled in ((None, False), (0, True)):
        widths = [b.chosen.token_ids.shape[1] for b in batch_pairs(mixed, (8, 12), 1, 0, seed=seed)[0]]
        assert (widths != sorted(widths)) == shuffled  # not the short ones first
    (batch,), _ = batch_pairs(pairs[:3], (8,), 4, 0)
    assert batch.weight.tolist() == [0.5, 0.5, 0.5, 0.0]
    assert batch.weight.dtype == np.float32


def test_verified_steps_ride_along_in_turn():
    rows = [((1,), (2 + i,)) for i in range(5)]
    batches, counts = batch_pairs(
        [pair(i) for i in range(4)], (8,), 2, 0, verified=[*rows, ((1,) * 9, (2,))], verified_per_batch=3
    )
    assert counts["verified_too_long"] == 1
    assert [unpack(b.verified) for b in batches] == [rows[:3], [rows[3], rows[4], rows[0]]]
    batches, _ = batch_pairs([pair(0)], (8,), 2, 0, verified=rows[:1])
    assert unpack(batches[0].verified) == rows[:1]  # none twice in a batch
    (batch,), _ = batch_pairs([pair(0, prefix=8)], (8, 12), 1, 0, verified=rows)
    assert batch.chosen.token_ids.shape[1] == 12
    assert batch.verified.token_ids.shape == (1, 8)  # no wider than they need

    def order(seed):
        return [
            unpack(b.verified)
            for b in batch_pairs([pair(i) for i in range(5)], (8,), 1, 0, seed=seed, verified=rows)[0]
        ]

    assert order(1) == order(1) != order(2)
    with pytest.raises(UserError, match="no verified-correct step"):
        batch_pairs([pair(0)], (8,), 2, 0, verified=[])


def test_buckets_and_bad_input():
    assert length_buckets(200) == (64, 96, 128, 192, 256)
    assert length_buckets(64) == (64,)
    assert length_buckets(9, 1) == (1, 2, 3, 4, 6, 8, 12)
    with pytest.raises(UserError, match="at least 1, got 0"):
        length_buckets(9, 0)
    with pytest.raises(UserError, match="batch_size=0"):
        batch_pairs([], (8,), 0, 0)
    with pytest.raises(UserError, match="length_buckets"):
        batch_pairs([], (), 1, 0)
    bare = Pair("x", "wrong", "q", "", "a", "b", (), (), (), (), (False, False))
    with pytest.raises(UserError, match="pair 'x' has no token ids"):
        batch_pairs([bare], (8,), 1, 0)
    with pytest.raises(UserError, match="pair 'x' has no token ids"):
        pack_pairs([bare], 8, 0)
