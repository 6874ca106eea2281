"""Reference log-probs on disk: computed once for all runs that share them, and again whenever they would differ."""

import dataclasses
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.errors import Interrupted, UserError
from caspo_jax.preferences.packing import pack_pairs
from caspo_jax.training import LossConfig, TrainConfig, reference_cache, train
from caspo_jax.training.data import RowStore
from caspo_jax.training.make_plan import make_plan
from caspo_jax.training.reference_cache import (
    ReferenceCacheWarning,
    fill_references,
)

from helpers import Scaled, Toy, make_data  # isort: skip

PAIRS, VERIFIED = make_data(0)
CONFIG = TrainConfig(batch_size=4, epochs=1, min_length=16, tensorboard=False)
SMALL = dataclasses.replace(CONFIG, batch_size=1)


def filled(folder, model=None, pairs=PAIRS, config=CONFIG):
    """How many micro-batches were computed, and the log-probs."""
    store = RowStore.build(pairs, VERIFIED)
    computed = fill_references(store, make_plan(store, config), model or Toy(), folder)
    return computed, np.stack([store.reference_chosen, store.reference_rejected])


def test_what_changes_no_reference_computes_none(tmp_path):
    computed, values = filled(tmp_path)
    assert computed > 0
    assert np.isfinite(values).all()
    changes = [
        {},
        {"loss": LossConfig(beta=0.5, label_smoothing=0.1)},
        {"loss": LossConfig(loss="ipo")},
        {"learning_rate": 1.0, "seed": 3, "remat": "full", "weight_decay": 0.1},
    ]
    for change in changes:
        again, same = filled(tmp_path, config=dataclasses.replace(CONFIG, **change))
        assert again == 0, change
        np.testing.assert_array_equal(same, values)
    heavier = [dataclasses.replace(pair, weight=7.0) for pair in PAIRS]
    assert filled(tmp_path, pairs=heavier)[0] == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_what_changes_the_reference_computes_it(tmp_path):
    _, values = filled(tmp_path)
    other = dataclasses.replace(PAIRS[0], chosen_ids=(*PAIRS[0].chosen_ids, 1))
    cases = {
        "weights": {"model": Toy(seed=1)},
        "dtype": {"model": Toy(dtype=jnp.bfloat16)},
        "data": {"pairs": [other, *PAIRS[1:]]},
        "order": {"pairs": PAIRS[::-1]},
        "length": {"config": dataclasses.replace(CONFIG, pack_length=4096, min_length=128)},
        "packing": {"config": dataclasses.replace(CONFIG, pack="rows")},
    }
    for number, (name, change) in enumerate(cases.items(), start=2):
        computed, found = filled(tmp_path, **change)
        assert computed > 0, name
        assert len(list(tmp_path.iterdir())) == number, name
        if name in ("length", "packing"):
            np.testing.assert_allclose(found, values, atol=1e-5)


@pytest.mark.parametrize("damage", ["empty", "torn", "flipped", "text", "other", "wide"])
def test_a_damaged_entry_is_ignored_with_a_warning(tmp_path, damage):
    _, values = filled(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage in ("other", "wide"):
        zeros = np.zeros(3, np.float32) if damage == "other" else np.zeros(len(PAIRS))
        np.savez(path, chosen=zeros, rejected=zeros)
    else:
        middle = whole.index(b"NUMPY") + 128  # the first array's numbers
        path.write_bytes(
            {
                "empty": b"",
                "torn": whole[:-40],
                "flipped": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
                "text": b"not an archive",
            }[damage]
        )
    with pytest.warns(ReferenceCacheWarning, match=path.name):
        computed, found = filled(tmp_path)
    assert computed > 0
    np.testing.assert_array_equal(found, values)
    assert filled(tmp_path)[0] == 0  # it was replaced
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_given_log_probs_are_kept_and_not_passed_on(tmp_path):
    batch = pack_pairs(PAIRS, 24, 0)
    given_values = np.where(np.arange(len(PAIRS)) < 3, -1.0, np.nan).astype(np.float32)
    batch = dataclasses.replace(batch, reference_chosen=given_values, reference_rejected=given_values)
    _, some = filled(tmp_path, pairs=[batch])
    np.testing.assert_array_equal(some[:, :3], -1.0)
    missing = dataclasses.replace(batch, reference_chosen=np.full(len(PAIRS), np.nan, np.float32))
    _, found = filled(tmp_path, pairs=[missing])
    _, computed = filled(None, pairs=[missing])
    np.testing.assert_allclose(found, computed, atol=1e-5)
    np.testing.assert_array_equal(found[:, 3:], some[:, 3:])


def test_given_log_probs_whose_rows_nobody_computed_are_not_passed_on(tmp_path):
    """Each pair in a row of its own: those of the given ones are computed when somebody asks for them."""
    batch = pack_pairs(PAIRS, 24, 0)
    nothing = np.full(len(PAIRS), np.nan, np.float32)
    some = np.where(np.arange(len(PAIRS)) < 3, np.float32(-1.0), nothing)
    given, asked = (
        dataclasses.replace(batch, reference_chosen=x, reference_rejected=x) for x in (some, nothing)
    )
    assert filled(tmp_path, pairs=[given], config=SMALL)[0] == len(PAIRS) - 3
    computed, found = filled(tmp_path, pairs=[asked], config=SMALL)
    assert computed == 3
    np.testing.assert_allclose(found, filled(None, pairs=[asked], config=SMALL)[1], atol=1e-5)


def test_a_shorter_run_keeps_what_it_read(tmp_path):
    short = dataclasses.replace(CONFIG, max_steps=1)
    _, values = filled(tmp_path, config=short)
    assert np.isnan(values).any()
    rest, everything = filled(tmp_path)
    assert rest > 0
    known = np.isfinite(values)
    np.testing.assert_array_equal(everything[known], values[known])
    assert filled(tmp_path, config=short)[0] == filled(tmp_path)[0] == 0


def test_log_probs_that_are_not_finite_are_not_kept(tmp_path):
    bad = Toy()
    bad.embed[...] = bad.embed[...] * jnp.nan
    with pytest.raises(UserError, match="reference"):
        filled(tmp_path, model=bad)
    assert not list(tmp_path.iterdir())


class Torn(Toy):
    """Token 12 leaves nothing to predict with."""

    def hidden_states(self, token_ids, *args, **options):
        states = super().hidden_states(token_ids, *args, **options)
        return jnp.where((token_ids == 12)[..., None], jnp.nan, states)


@pytest.mark.parametrize("side", ["chosen_ids", "rejected_ids"])
def test_one_side_that_is_not_finite_is_enough(tmp_path, side):
    pairs = [*PAIRS[:4], dataclasses.replace(PAIRS[4], **{side: (12, 1)}), *PAIRS[5:]]
    with pytest.raises(UserError, match=f"not finite for pairs .*{PAIRS[4].id}"):
        filled(tmp_path, model=Torn(), pairs=pairs)


def counted(monkeypatch, stop_at=None):
    """How many micro-batches are computed from now on; the one with number `stop_at` is interrupted."""
    computed = []

    def batch_reference(*args, **options):
        if len(computed) + 1 == stop_at:
            raise KeyboardInterrupt
        computed.append(1)
        return real(*args, **options)

    real = reference_cache.batch_reference
    monkeypatch.setattr(reference_cache, "batch_reference", batch_reference)
    return computed


def test_a_pass_that_is_cut_short_keeps_what_it_computed(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        whole, values = filled(None, config=SMALL)
        before = counted(patched, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            filled(tmp_path, config=SMALL)
    after = counted(monkeypatch)
    _, found = filled(tmp_path, config=SMALL)
    assert (len(before), len(after)) == (2, whole - 2)
    np.testing.assert_array_equal(found, values)


def test_a_long_pass_is_kept_before_it_ends(tmp_path, monkeypatch):
    """However it is killed: not even `finally` need run."""
    monkeypatch.setattr(reference_cache, "_WRITE_EVERY", 0.0)
    known = []

    def look(done, total):
        known.append((done, len(list(tmp_path.iterdir()))))

    store = RowStore.build(PAIRS, VERIFIED)
    fill_references(store, make_plan(store, SMALL), Toy(), tmp_path, progress=look)
    assert known[-1][0] == len(PAIRS)
    assert [files for _, files in known] == [0] + [1] * (len(known) - 1)


def test_progress_ends_at_the_number_of_pairs_where_updates_cross_epochs():
    """The second update holds a pair of the first again."""
    seen, store = [], RowStore.build(PAIRS, VERIFIED)
    plan = make_plan(store, dataclasses.replace(CONFIG, epochs=2))
    fill_references(store, plan, Toy(), None, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 7), (7, 7)]


def test_progress_counts_the_pairs_of_which_one_side_was_given():
    batch, seen = pack_pairs(PAIRS, 24, 0), []
    nothing = np.full(len(PAIRS), np.nan, np.float32)
    half = np.where(np.arange(len(PAIRS)) < 3, np.float32(-1.0), nothing)
    store = RowStore.build([dataclasses.replace(batch, reference_chosen=half, reference_rejected=nothing)])
    fill_references(
        store, make_plan(store, SMALL), Toy(), None, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, len(PAIRS)) for done in range(1, len(PAIRS) + 1)]
    np.testing.assert_array_equal(store.reference_chosen[:3], -1.0)


@pytest.mark.parametrize("pack, number", [("trees", signal.SIGTERM), ("rows", signal.SIGINT)])
def test_a_signal_in_the_pass_keeps_what_it_computed(tmp_path, monkeypatch, pack, number):
    config, seen = dataclasses.replace(SMALL, pack=pack), []
    before = signal.getsignal(number)

    def terminate(done, total, updates):
        seen.append((done, total, updates))
        if done == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=f"log-probs of 2 of {len(PAIRS)} pairs") as stopped:
        train(Toy(), PAIRS, config, out_dir=tmp_path, on_reference=terminate)
    assert stopped.value.signal == number
    assert signal.getsignal(number) is before
    assert seen == [(done, len(PAIRS), len(PAIRS)) for done in (1, 2)]
    computed = counted(monkeypatch)
    _, summary = train(Toy(), PAIRS, config, out_dir=tmp_path)
    assert len(computed) == len(PAIRS) - 2
    assert summary.steps == len(PAIRS)


def test_what_is_in_no_array_of_a_model_without_a_config_counts(tmp_path):
    assert filled(tmp_path, model=Scaled(1.0))[0] > 0
    assert filled(tmp_path, model=Scaled(3.0))[0] > 0
    assert filled(tmp_path, model=Toy())[0] > 0
    assert filled(tmp_path, model=Scaled(1.0))[0] == filled(tmp_path, model=Scaled(3.0))[0] == 0


def test_a_run_without_a_shared_folder_keeps_its_own(tmp_path):
    config = dataclasses.replace(CONFIG, max_steps=1)
    train(Toy(), PAIRS, config, out_dir=tmp_path / "own")
    assert len(list((tmp_path / "own" / "reference").iterdir())) == 1
    train(Toy(), PAIRS, config, out_dir=tmp_path / "run", reference_cache=tmp_path / "shared")
    assert not (tmp_path / "run" / "reference").exists()
    assert [p.name for p in (tmp_path / "shared").iterdir()] == [
        p.name for p in (tmp_path / "own" / "reference").iterdir()
    ]
