"""Pairs of any format as the stage of training reads them: what does not fit is left out, and said."""

import copy
import dataclasses
import json
import types
import warnings

import pytest

from caspo_jax.errors import UserError
from caspo_jax.preferences import NoContrastWarning, TooLongWarning, UnclosedThoughtWarning, readers
from caspo_jax.records import pair_to_record, trace_to_record
from caspo_jax.tasks import get_task
from caspo_jax.training import LossConfig, TrainConfig, TrainSummary
from caspo_jax.training.stages import Policy, read_pairs, train, train_stage
from caspo_jax.types import Pair, Step, Trace

POLICY = Policy.without_weights(get_task("graph").policy_path)
CONTEXT = POLICY.model.config.context
OWN = Pair("own", "wrong", "p", "s", "a", "b", (5, 6), (7,), (8,), (9,), (False, False))
STEP_DPO = {"prompt": "q = 5", "initial_reason_steps": "", "chosen": "put m", "rejected": "get m"}
ANSWER = {"prompt": "q = 5", "chosen": "put m", "rejected": "get m"}
LONG = "m = 1, " * CONTEXT


def own(rejected_tokens):
    return pair_to_record(dataclasses.replace(OWN, rejected_ids=(9,) * rejected_tokens))


def write(folder, *records):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    "long",
    [own(CONTEXT - 2), STEP_DPO | {"chosen": LONG}, ANSWER | {"prompt": LONG}],
    ids=["own", "step", "trl"],
)
def test_a_pair_longer_than_the_context_is_left_out_and_named(tmp_path, long):
    given = write(tmp_path, own(CONTEXT - 3), STEP_DPO, long, ANSWER, long)
    message = rf"^.*pairs\.jsonl: left out 2 of 5 pairs; the first: .*pairs\.jsonl:3: \d+ tokens exceed .*context of {CONTEXT} "
    with pytest.warns(TooLongWarning, match=message):
        pairs, left_out = read_pairs(given, POLICY)
    assert left_out == 2
    assert [pair.chosen for pair in pairs] == ["a", "put m", "put m"]
    assert len(pairs[0].rejected_ids) == CONTEXT - 3  # all that fits, and nothing cut


def test_pairs_read_together_are_those_read_one_by_one_in_the_order_of_the_file(tmp_path, monkeypatch):
    records = []
    for i in range(4):
        chat = {"prompt": [{"role": "user", "content": f"q = {i}"}]}
        chat |= {
            side: [{"role": "assistant", "content": side[:1] * (i + 1)}] for side in ("chosen", "rejected")
        }
        long = ANSWER | {"rejected": LONG}
        same = ANSWER | {"chosen": "get m"}
        records += [own(i + 1), STEP_DPO | {"prompt": f"q = {i}"}, long, same, ANSWER | {"id": f"a{i}"}, chat]
    given, counts, read = write(tmp_path, *records), [], {}
    for together in (1, 5, 512):
        monkeypatch.setattr(readers, "_AT_ONCE", together)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pairs, left_out = read_pairs(given, POLICY, progress=counts.append)
        read[together] = pairs, left_out, [str(warning.message) for warning in caught]
    assert read[1] == read[5] == read[512]
    pairs, left_out, said = read[1]
    assert left_out == 8
    assert len(pairs) == 16
    assert ["pairs.jsonl:3: " in said[1], "pairs.jsonl:4: " in said[0]] == [True, True]
    assert counts == [*range(1, 25), 5, 10, 15, 20, 24, 24]


def test_each_reason_has_its_warning(tmp_path):
    given = write(tmp_path, STEP_DPO, ANSWER | {"chosen": "get m"}, own(CONTEXT), ANSWER | {"chosen": " "})
    with (
        pytest.warns(TooLongWarning, match=r"left out 1 of 4 pairs.*:3: \d+ tokens exceed"),
        pytest.warns(NoContrastWarning, match=r"left out 2 of 4 pairs.*:2: .*same text"),
    ):
        assert read_pairs(given, POLICY)[1] == 3


def test_own_pairs_of_two_equal_steps_say_nothing_either(tmp_path):
    same = pair_to_record(dataclasses.replace(OWN, rejected_ids=OWN.chosen_ids))
    with pytest.warns(NoContrastWarning, match=r"left out 1 of 2 pairs.*:2: .*are the same"):
        assert read_pairs(write(tmp_path, own(1), same), POLICY)[1] == 1


def test_own_pairs_need_no_tokenizer(tmp_path):
    bare = dataclasses.replace(POLICY, tokenizer=None)
    (pair,), _ = read_pairs(write(tmp_path, pair_to_record(OWN)), bare)
    assert (pair.chosen_ids, pair.rejected_ids) == (OWN.chosen_ids, OWN.rejected_ids)
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: .* has no tokenizer"):
        read_pairs(write(tmp_path, pair_to_record(OWN), ANSWER), bare)


def test_a_file_of_which_nothing_is_left_is_one_error(tmp_path):
    given = write(tmp_path, own(CONTEXT), STEP_DPO | {"chosen": LONG})
    message = rf"none of its 2 pairs can be used; the first: .*pairs\.jsonl:1: {CONTEXT + 3} tokens exceed"
    with pytest.raises(UserError, match=message):
        read_pairs(given, POLICY)


def test_ids_of_another_vocabulary_are_an_error_all_the_same(tmp_path):
    given = write(tmp_path, own(1), own(1) | {"chosen_ids": [10**6]})
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: .*1000000"):
        read_pairs(given, POLICY)


def test_answers_that_end_inside_the_thought_which_the_template_opens_are_named(tmp_path):
    tokenizer = copy.deepcopy(POLICY.tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}<think>\n"
    thinking = dataclasses.replace(POLICY, tokenizer=tokenizer)
    closed = ANSWER | {"chosen": "</think>\nput m", "rejected": "</think>\nput n"}
    step = STEP_DPO | {"id": "step"}  # a step may well stand inside the thought
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_pairs(write(tmp_path, closed, step), thinking)
        read_pairs(write(tmp_path, ANSWER | {"id": "bare"}), POLICY)
    given = write(tmp_path, closed, ANSWER | {"id": "bare"}, step)
    with pytest.warns(UnclosedThoughtWarning, match=r"<think>.* 1 of 3 chosen answers never close .*'bare'"):
        pairs, left_out = read_pairs(given, thinking)
    assert (len(pairs), left_out) == (3, 0)


@pytest.fixture
def policy(monkeypatch):
    """A policy of a stage that trains on whatever it is given and does nothing."""

    def trained(_, pairs, *more, verified, **options):
        return None, TrainSummary(1, len(pairs), len(verified), 9, 0, 0.1, 0, None, ())

    monkeypatch.setattr(train, "train", trained)
    model = types.SimpleNamespace(config=POLICY.model.config, dtype="float32")
    return dataclasses.replace(POLICY, model=model)


def test_what_was_left_out_is_counted_in_the_manifest(tmp_path, policy):
    given, config = write(tmp_path, own(1), own(CONTEXT)), TrainConfig(loss=LossConfig())
    with pytest.warns(TooLongWarning, match="left out 1 of 2"):
        counts = train_stage(policy, given, None, tmp_path / "run", config)
    assert (counts["pairs"], counts["left_out"]) == (1, 1)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["counts"] == counts


@pytest.mark.parametrize("loss", ["rft", "sft", "sigmoid"])
def test_only_a_loss_that_reads_pairs_needs_one(tmp_path, policy, loss):
    step = Step(0, 1, 0, 1, "s", verdict="correct")
    trace = Trace("t", "q", None, None, (5, 6), (7,), "s", "eos", steps=(step,))
    annotated = tmp_path / "annotated.jsonl"
    annotated.write_text(json.dumps(trace_to_record(trace)) + "\n")
    asked = (write(tmp_path, own(CONTEXT)), annotated, tmp_path / "run")
    config = TrainConfig(loss=LossConfig(loss))
    if loss == "rft":
        with pytest.warns(TooLongWarning, match="left out 1 of 1 pairs"):
            counts = train_stage(policy, *asked, config)
        assert (counts["pairs"], counts["left_out"], counts["verified_rows"]) == (0, 1, 1)
    else:
        with pytest.raises(UserError, match="none of its 1 pairs can be used"):
            train_stage(policy, *asked, config)


def test_verified_steps_without_tokens_are_named_with_their_line(tmp_path):
    step = Step(0, 3, 0, 1, "put", verdict="correct")
    whole = Trace("whole", "q", None, None, (5,), (8,), "put", "eos", steps=(step,))
    bare = dataclasses.replace(whole, id="bare", token_ids=())
    annotated = tmp_path / "annotated.jsonl"
    annotated.write_text("".join(json.dumps(trace_to_record(trace)) + "\n" for trace in (whole, bare)))
    config = TrainConfig(loss=LossConfig(loss="rft"))
    with pytest.raises(UserError, match=r"annotated\.jsonl:2: trace 'bare' has verified steps but no tokens"):
        train_stage(POLICY, write(tmp_path, own(1)), annotated, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_reads_verified_steps_asks_for_the_argument(tmp_path):
    given = write(tmp_path, own(1))
    with pytest.raises(UserError, match="nll_on=verified reads verified steps: give traces as `annotated`"):
        train_stage(POLICY, given, None, tmp_path / "run", TrainConfig.preset("caspo"))
