"""What a run trains on as rows: which rows there are, what tells two data sets apart, and what is of one question."""

import dataclasses

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.preferences.packing import pack_pairs, pack_rows
from caspo_jax.training.data import RowStore
from caspo_jax.types import StepRows

from helpers import make_data  # isort: skip

PAIRS, VERIFIED = make_data(3)


def with_step_from(pair, start):
    """The same tokens, of which another part is the step."""
    ids = pair.prompt_ids + pair.prefix_ids
    return dataclasses.replace(
        pair,
        prompt_ids=ids[:start],
        prefix_ids=(),
        chosen_ids=ids[start:] + pair.chosen_ids,
        rejected_ids=ids[start:] + pair.rejected_ids,
    )


def test_fingerprints_see_all_that_a_run_reads_and_those_of_the_pairs_what_references_depend_on():
    first, *others = PAIRS
    changed = dataclasses.replace(first, chosen_ids=(*first.chosen_ids, 1))
    context, step = VERIFIED[0]
    stores = {
        "as it is": RowStore.build(PAIRS, VERIFIED),
        "weight": RowStore.build([dataclasses.replace(first, weight=9.0), *others], VERIFIED),
        "verified": RowStore.build(PAIRS, [(context, (*step, 1)), *VERIFIED[1:]]),
        "verified boundary": RowStore.build(PAIRS, [(context[:1], context[1:] + step), *VERIFIED[1:]]),
        "tokens": RowStore.build([changed, *others], VERIFIED),
        "boundary": RowStore.build([with_step_from(first, 1), *others], VERIFIED),
        "order": RowStore.build(PAIRS[::-1], VERIFIED),
        "sides": RowStore.build(
            [dataclasses.replace(p, chosen_ids=p.rejected_ids, rejected_ids=p.chosen_ids) for p in PAIRS],
            VERIFIED,
        ),
    }
    assert len({store.fingerprint() for store in stores.values()}) == len(stores)
    assert RowStore.build(PAIRS, VERIFIED).fingerprint() == stores["as it is"].fingerprint()
    of_pairs = {name: store.pairs_fingerprint() for name, store in stores.items()}
    same = {name for name, found in of_pairs.items() if found == of_pairs["as it is"]}
    assert same == {"as it is", "weight", "verified", "verified boundary"}
    assert len(set(of_pairs.values())) == len(stores) - len(same) + 1


def test_packed_batches_give_the_rows_that_they_were_packed_from_and_no_padding():
    batch = dataclasses.replace(
        pack_pairs(PAIRS, 24, 0, batch_size=len(PAIRS) + 3), verified=pack_rows(VERIFIED, 24, 0, 20)
    )
    packed, plain = RowStore.build([batch]), RowStore.build(PAIRS, VERIFIED)
    assert packed.fingerprint() == plain.fingerprint()
    assert len(packed.weight) == len(PAIRS)
    assert np.isnan([packed.reference_chosen, packed.reference_rejected]).all()


def test_a_step_is_of_the_question_with_the_longest_prompt_that_it_begins_with():
    """One question's prompt may be the beginning of another's."""
    prompts = [(1, 2), (1, 2, 3), (1, 2, 3, 4)]
    pairs = [dataclasses.replace(PAIRS[0], id=str(i), prompt_ids=p) for i, p in enumerate(prompts)]
    steps = [((1, 2, 9), (5,)), ((1, 2, 3), (5,)), ((1, 2, 3, 4, 4), (5,)), ((2, 1), (5,)), ((2, 1), (6,))]
    store = RowStore.build(pairs, steps)
    assert store.pair_group.tolist() == [0, 1, 2]
    assert store.verified_group.tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("step", [[True, True, True], [True, False, True]])
def test_a_step_that_nothing_predicts_is_refused_whatever_follows_it(step):
    rows = StepRows(np.array([[1, 2, 3]]), np.ones((1, 3), bool), np.array([step]))
    with pytest.raises(UserError, match="starts the row"):
        RowStore.build(PAIRS, [rows])


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_a_weight_that_is_none_is_refused_in_a_packed_batch_too(weight):
    """It would be left out as padding is, and the run train on less than it was given."""
    batch = pack_pairs(PAIRS, 24, 0)
    batch.weight[2] = weight
    with pytest.raises(UserError, match="batch 0 row 2: its weight must be a finite number"):
        RowStore.build([batch])
