"""Records: what is written is read back, what is malformed is named."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspo_jax.errors import UserError
from caspo_jax.records import (
    pair_from_record,
    pair_to_record,
    question_from_record,
    question_to_record,
    search_to_record,
    trace_features,
    trace_from_record,
    trace_to_record,
    tree_from_record,
    tree_to_record,
)
from caspo_jax.records.values import as_ids, as_numbers, finite, finite_list
from caspo_jax.types import CatNode, CatResult, CatTree, Pair, Question, Step, Trace

STEP = Step(0, 5, 0, 3, "a = 1", 0.9, 0.1, "correct", "exact")
TRACE = Trace(
    "t",
    "q?",
    "1",
    None,
    (1, 2),
    (3, 4, 5),
    "a = 1",
    "eos",
    "1",
    True,
    "p",
    0,
    "sample",
    0.5,
    (STEP,),
    (-0.1, -0.2, -0.3),
    (0.5, 0.25, 0.125),
)


def through_json(record):
    return json.loads(json.dumps(record, allow_nan=False))


def test_trace_round_trip():
    assert trace_from_record(through_json(trace_to_record(TRACE))) == TRACE
    assert "logprob" not in trace_to_record(TRACE, token_stats=False)


def test_missing_numbers_are_null_on_disk():
    import dataclasses

    trace = dataclasses.replace(TRACE, entropy=(math.nan, 0.25, 0.125), path_confidence=math.nan)
    record = through_json(trace_to_record(trace))
    assert record["entropy"][0] is None
    assert record["path_confidence"] is None
    assert math.isnan(trace_from_record(record).entropy[0])


@given(st.lists(st.one_of(st.floats(), st.integers(-9, 9), st.none(), st.floats(width=32).map(np.float32))))
def test_a_list_of_numbers_is_read_and_written_one_by_one(values):
    """However many of them are what they nearly always are, which takes a shorter way."""
    assert finite_list(values) == [finite(value) for value in values]
    assert [type(v) for v in finite_list(values)] == [type(finite(v)) for v in values]
    record = [None if v is None else float(v) if isinstance(v, np.floating) else v for v in values]
    read = as_numbers(record, "entropy")
    wanted = [math.nan if v is None else float(v) for v in record]
    np.testing.assert_array_equal(read, wanted)
    assert {*map(type, read)} <= {float}


@given(
    st.lists(st.one_of(st.integers(-1, 9), st.integers(0, 2**40), st.booleans(), st.floats(0, 9), st.none()))
)
def test_token_ids_are_integers_from_0_on_whatever_holds_them(values):
    good = all(type(v) is int and v >= 0 for v in values)
    for held in (values, tuple(values)):
        if good:
            assert as_ids(held, "token_ids") == tuple(values)
        else:
            with pytest.raises(UserError, match="must be a list of token ids"):
                as_ids(held, "token_ids")


PAIR = Pair(
    "i",
    "wrong",
    "q",
    "",
    "c",
    "r",
    (1,),
    (),
    (2,),
    (3,),
    (True, False),
    0.5,
    0.6,
    "correct",
    "wrong",
    "t",
    0,
)


def test_pair_round_trip():
    assert pair_from_record(through_json(pair_to_record(PAIR))) == PAIR
    assert pair_from_record(pair_to_record(PAIR) | {"ends_trace": True, "id": 7}).ends_trace == (True, True)
    for field, values in (
        ("ends_trace", ([True], "ab", None, [1, 0])),
        ("weight", (-1, "2", None, math.nan, math.inf)),
    ):
        for value in values:
            with pytest.raises(UserError, match=f"`{field}` must be"):
                pair_from_record(pair_to_record(PAIR) | {field: value})
    unknown = dataclasses.replace(PAIR, chosen_confidence=math.nan, rejected_confidence=math.inf)
    back = pair_from_record(through_json(pair_to_record(unknown)))
    assert (back.chosen_confidence, back.rejected_confidence) == (None, None)
    record = through_json(pair_to_record(PAIR))
    del record["chosen_ids"]
    with pytest.raises(UserError, match="chosen_ids"):
        pair_from_record(record)


def test_a_named_field_is_the_question_whatever_stands_beside_it():
    record = {"id": "1", "problem": "What is 2+2?", "prompt": "Translate: hello", "prompt_ids": [1, 2]}
    for field in ("problem", "prompt"):
        question = question_from_record(record, question_field=field)
        assert (question.question, question.prompt, question.prompt_ids) == (record[field], None, None)
    assert question_from_record(record).prompt == "Translate: hello"
    with pytest.raises(UserError, match="`problem` must be a string, found null"):
        question_from_record({**record, "problem": None}, question_field="problem")


def test_question_fields_and_their_other_names():
    assert question_from_record({"problem": "p", "answer": 3, "unique_id": "u"}) == Question(
        "u", "p", gold="3"
    )
    assert question_from_record({"id": 7, "instruction": "i", "level": 2}).extra == {"level": 2}
    unnamed = {"id": None, "unique_id": "u", "question": "q"}
    assert question_from_record(unnamed).id == "u"
    assert question_from_record({"id": None, "question": "q"}, default_id="4").id == "4"
    assert question_from_record({"id": 0, "question": "q"}, default_id="4").id == "0"
    named = question_from_record(
        {"stem": "s", "key": "k"}, question_field="stem", gold_field="key", default_id="0"
    )
    assert (named.id, named.question, named.gold) == ("0", "s", "k")
    question = Question("u", "p", gold="3", prompt_ids=(1, 2))
    assert question_from_record(through_json(question_to_record(question))) == question


@pytest.mark.parametrize(
    "golds, gold",
    [
        ({"gold": "", "answer": "3"}, "3"),
        ({"gold": " \n", "answer": ""}, None),
        ({"gold": math.nan, "answer": [math.nan]}, None),
        ({"gold": [], "answer": ["18"]}, "18"),
        ({"answer": [18]}, "18"),
        ({"answer": [""]}, None),
        ({"gold": 0, "answer": "3"}, "0"),
    ],
)
def test_a_blank_gold_answer_is_none_and_a_list_of_one_is_its_text(golds, gold):
    assert question_from_record({"question": "q", **golds}).gold == gold


@pytest.mark.parametrize(
    "record, message",
    [
        ({"id": "a"}, "needs one of"),
        ({"question": "  "}, "prompt is empty"),
        ({"prompt_ids": []}, "prompt is empty"),
        ({"prompt_ids": [1, -2]}, "prompt_ids"),
        ({"prompt_ids": "12"}, "prompt_ids"),
        ({"question": 5}, "must be a string"),
        (
            {"question": "q", "gold": ["a", "b"]},
            "gold answer must be a string or a number, found a list of 2",
        ),
        ({"question": "q", "gold": [{}]}, "gold answer must be a string or a number, found dict"),
        ({"question": "q", "gold": True}, "gold answer"),
    ],
)
def test_bad_questions(record, message):
    with pytest.raises(UserError, match=message):
        question_from_record(record)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"token_ids": [1.5]}, "token_ids"),
        ({"entropy": [0.1]}, "1 entries for 3"),
        ({"schema": {"name": "pair", "version": 1}}, "expected a trace"),
        ({"schema": {"name": "trace", "version": 99}}, "newer"),
        ({"steps": [{"start": 0}]}, "a step lacks"),
        *(
            ({"steps": [dataclasses.asdict(STEP) | change]}, message)
            for change, message in (
                ({"end": None}, "`start` and `end`"),
                ({"start": 9}, "`start` and `end`"),
                ({"token_start": True}, "`token_start` and `token_end`"),
                ({"token_start": -1}, "`token_start` and `token_end`"),
                ({"token_end": 4}, "after the trace's 3 token ids"),
                ({"text": None}, "`text` must be a string"),
                ({"confidence": "high"}, "`confidence` must be a number"),
                ({"entropy": 10**400}, "a step's `entropy` must be a number that a float can hold"),
                ({"verifier": ["exact"]}, "a step's `verifier` must be a string"),
            )
        ),
        ({"correct": "no"}, "`correct` must be true, false or null"),
        ({"finish_reason": "tired"}, "`finish_reason` must be one of eos, stop"),
        ({"path_confidence": "high"}, "`path_confidence` must be a number"),
        ({"policy": ["p"]}, "`policy` must be a string"),
        ({"seed": "x"}, "`seed` must be an integer"),
        ({"logprob": ["0.5", -0.1, -0.2]}, "`logprob` must be a number or null, found '0.5'"),
        ({"entropy": [True, 0.1, 0.2]}, "`entropy` must be a number"),
        ({"entropy": "abc"}, "`entropy` must be a list of numbers"),
        ({"steps": {"start": 0}}, "`steps` must be a list of steps"),
        ({"steps": [3]}, "`steps` must be a list of steps"),
        ({"id": None}, "`id` must be a string or an integer"),
        ({"text": None}, "needs `text`"),
        ({"text": None, "id": "x"}, None),
    ],
)
def test_bad_traces(change, message):
    record = through_json(trace_to_record(TRACE)) | change
    if message is None:
        del record["text"]
        message = "needs `text`"
    with pytest.raises(UserError, match=message):
        trace_from_record(record)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"chosen": 3}, "`chosen` must be a string"),
        ({"prefix": None}, "`prefix` must be a string"),
        ({"kind": "right"}, "`kind` must be one of"),
        ({"rejected_verdict": "bad"}, "`rejected_verdict` must be one of"),
        ({"chosen_confidence": "high"}, "`chosen_confidence` must be a number"),
        ({"step_index": "x"}, "`step_index` must be an integer"),
        *(({"weight": w}, "`weight` must be a number from 0") for w in (-1, 1e39, 10**400, "1", True)),
        ({"trace_id": 3}, "`trace_id` must be a string"),
        ({"id": [1]}, "`id` must be a string or an integer"),
    ],
)
def test_pairs_of_another_form(change, message):
    with pytest.raises(UserError, match=message):
        pair_from_record(through_json(pair_to_record(PAIR)) | change)


def test_tree_record_has_parallel_lists():
    nodes = (
        CatNode(-1, (1, 2), (-0.1, -0.2), (0.3, 0.4), 0.7, 0.7, "closed", None),
        CatNode(0, (3,), (-0.3,), (0.5,), math.nan, 0.7, "pruned", "threshold"),
    )
    record = through_json(tree_to_record(CatTree("q", (9,), nodes, (0, 1), 0.5)))
    assert record["parent"] == [-1, 0]
    assert record["confidence"] == [0.7, None]
    assert record["token_ids"] == [[1, 2], [3]]
    assert record["reason"] == [None, "threshold"]
    again = tree_from_record(record)
    assert again.nodes == (nodes[0], dataclasses.replace(nodes[1], confidence=None))
    lacking = record | {"logprob": [[-0.1, None], [-0.3]], "entropy": [[0.3, 0.4], [None]]}
    assert through_json(tree_to_record(tree_from_record(lacking))) == lacking
    assert (again.question_id, again.prompt_ids, again.key, again.threshold) == ("q", (9,), (0, 1), 0.5)
    with pytest.raises(UserError, match="a tree lacks"):
        tree_from_record({"question_id": "q"})
    with pytest.raises(UserError, match="different lengths"):
        tree_from_record(record | {"parent": [-1]})
    bad = {
        "threshold": ("0.5", "must be a number"),
        "parent": ([-1, "x"], "of node 1 must be an earlier node"),
        "token_ids": ([[1, 2], "ab"], "must be a list of token ids"),
        "logprob": ([[-0.1, -0.2], ["x"]], "must be a number or null"),
        "entropy": ([[0.1, 0.2], 3], "must be a list of numbers"),
        "confidence": ([0.7, "high"], "must be a number or null"),
        "status": (["closed", "tired"], "must be one of live, closed"),
        "reason": ([None, 3], "must be a string"),
        "prompt_ids": (["x"], "must be a list of token ids"),
        "key": ([0.5], "must be a list of integers"),
    }
    for field, (value, message) in bad.items():
        with pytest.raises(UserError, match=f"`{field}` {message}"):
            tree_from_record(record | {field: value})
    with pytest.raises(UserError, match="must be lists"):
        tree_from_record(record | {"parent": 3})
    for field in ("logprob", "entropy"):
        with pytest.raises(UserError, match=f"`{field}` of node 0 has 1 entries for 2 tokens"):
            tree_from_record(record | {field: [[0.1], [0.1]]})
    for parents in ([-1, 7], [1, 0], [-1, 1]):  # none such, and two that no walk to the root would leave
        with pytest.raises(UserError, match="an earlier node"):
            tree_from_record(record | {"parent": parents})


def test_a_search_record_is_its_tree_and_what_it_elected():
    tree = CatTree("q", (9,), (CatNode(-1, (1,), (-0.1,), (0.3,), 0.7, 0.7, "finished", "eos"),), (0, 1), 0.5)
    result = CatResult("q", "7", (), tree, 1, {"8": 0.25, "7": 0.75})
    record = through_json(search_to_record(result, "confidence", 25.0))
    told = {"vote": "confidence", "gamma": 25.0, "answer": "7", "votes": {"8": 0.25, "7": 0.75}}
    assert record == through_json(tree_to_record(tree)) | told
    assert tree_from_record(record) == tree


def test_raw_and_annotated_traces_load_together_with_datasets(tmp_path):
    """Also a file whose first part has a field always null, and one that lacks the token statistics."""
    datasets = pytest.importorskip("datasets")
    raw = dataclasses.replace(
        TRACE, gold=None, answer=None, correct=None, path_confidence=None, steps=(), id="raw"
    )
    unjudged = dataclasses.replace(STEP, verdict="unknown", verifier=None, confidence=None)
    files = {
        "raw": [trace_to_record(raw)],
        "unjudged": [trace_to_record(dataclasses.replace(raw, id="unjudged", steps=(unjudged,)))],
        "annotated": [trace_to_record(raw), trace_to_record(TRACE)],
        "bare": [trace_to_record(TRACE, token_stats=False)],
    }
    paths = [tmp_path / f"{name}.jsonl" for name in files]
    for path in paths:
        path.write_text("".join(json.dumps(record) + "\n" for record in files[path.stem]))
    loaded = datasets.load_dataset(
        "json",
        data_files=list(map(str, paths)),
        features=trace_features(),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded["id"] == ["raw", "unjudged", "raw", "t", "t"]
    for row, record in zip(loaded, (r for path in paths for r in files[path.stem]), strict=True):
        assert {key: row[key] for key in record} == record
        assert {row[key] for key in row.keys() - record.keys()} <= {None}
