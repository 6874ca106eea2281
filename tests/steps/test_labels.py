"""Recorded labels in the formats of the field."""

import json

import pytest

from caspo_jax.errors import UserError
from caspo_jax.steps import (
    first_error_verdicts,
    math_shepherd_from_record,
    prm800k_from_record,
    processbench_from_record,
    read_labelled,
    read_labels,
)
from caspo_jax.steps.labels import verdict_of


def write(tmp_path, *records):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_lines_of_every_form(tmp_path):
    labels = read_labels(
        write(
            tmp_path,
            {"trace_id": "a", "step_index": 1, "verdict": "wrong"},
            {"id": "a", "step_index": 0, "label": 1},
            {"id": "b", "labels": [True, False, None]},
            {"id": "c", "steps": ["x", "y", "z"], "label": 1},
            {"id": "d", "steps": [{"verdict": "correct"}, {"verdict": "unknown"}]},
            {"id": "e", "step_index": 1, "verdict": "correct"},
        )
    ).labels
    assert labels == {
        "a": ("correct", "wrong"),
        "b": ("correct", "wrong", "unknown"),
        "c": ("correct", "wrong", "unknown"),
        "d": ("correct", "unknown"),
        "e": ("unknown", "correct"),
    }


@pytest.mark.parametrize(
    "record, message",
    [
        ({"verdict": "wrong"}, "needs `id`"),
        ({"id": "a", "step_index": -1, "verdict": "wrong"}, "`step_index` must be 0 or more"),
        ({"id": "a", "step_index": 0, "verdict": "perhaps"}, "unknown label 'perhaps': choose from"),
        ({"id": "a", "step_index": 0}, "needs `verdict` or `label`"),
        ({"id": "a"}, "labels need"),
        ({"id": "a", "steps": ["x"], "label": 1}, "label 1 is no step of 1"),
    ],
)
def test_bad_lines_are_named(tmp_path, record, message):
    with pytest.raises(UserError, match=rf"labels.jsonl:2: .*{message}"):
        read_labels(write(tmp_path, {"id": "z", "labels": []}, record))


def test_contradictory_labels(tmp_path):
    with pytest.raises(UserError, match=r"labels.jsonl:2: step 0 of 'a' was called correct before"):
        read_labels(
            write(
                tmp_path,
                {"id": "a", "step_index": 0, "verdict": "correct"},
                {"id": "a", "step_index": 0, "verdict": "wrong"},
            )
        )


def test_single_labels():
    assert [verdict_of(x) for x in (1, True, "+", -1, False, "-", 0, None, "unknown")] == [
        *["correct"] * 3,
        *["wrong"] * 3,
        *["unknown"] * 3,
    ]
    assert verdict_of(0, neutral="correct") == "correct"
    assert first_error_verdicts(-1, 2) == ("correct", "correct")


def test_processbench():
    solution = processbench_from_record({"id": "p-1", "problem": "?", "steps": ["a", "b", "c"], "label": 1})
    assert solution.verdicts == ("correct", "wrong", "unknown")
    with pytest.raises(UserError, match="`label` must be"):
        processbench_from_record({"problem": "?", "steps": ["a"], "label": None})


def test_prm800k_completions_are_siblings():
    record = {
        "question": {"problem": "2+2?", "ground_truth_answer": "4"},
        "label": {
            "steps": [
                {
                    "completions": [{"text": "a", "rating": 1}, {"text": "b", "rating": -1}],
                    "chosen_completion": 0,
                    "human_completion": None,
                },
                {
                    "completions": [{"text": "c", "rating": 0}],
                    "chosen_completion": None,
                    "human_completion": {"text": "h"},
                },
                {"completions": [{"text": "4\n\n# Answer\n\n4", "rating": 1}], "chosen_completion": None},
            ]
        },
    }
    solutions = prm800k_from_record(record, id="r")
    assert [(s.id, s.steps, s.verdicts[-1]) for s in solutions] == [
        ("r/0.0", ("a",), "correct"),
        ("r/0.1", ("b",), "wrong"),
        ("r/1.0", ("a", "c"), "unknown"),
        ("r/2.0", ("a", "h", "4\n\n# Answer\n\n4"), "correct"),
    ]
    assert [s.ended for s in solutions] == [False, False, False, True]
    flat = prm800k_from_record({"prompt": "?", "completions": ["a", "b"], "labels": [True, False]})
    assert flat[0].verdicts == ("correct", "wrong")
    assert not flat[0].ended  # rated so far: no EOS belongs after a step that others go on from
    whole = {"prompt": "?", "completions": ["a", "The answer is: 4"], "labels": [True, True]}
    assert prm800k_from_record(whole)[0].ended


@pytest.mark.parametrize(
    "label",
    [
        {"steps": ["a"]},
        {"steps": [{"completions": ["a"]}]},
        {"steps": [{"completions": [{"text": None, "rating": 1}]}]},
        {"steps": [{"human_completion": {"text": None}}]},
        *(
            {"steps": [{"completions": [{"text": "a", "rating": 1}], "chosen_completion": chosen}]}
            for chosen in (1, -1, "0", True)
        ),
    ],
)
def test_prm800k_records_of_another_shape_are_named(label, tmp_path):
    path = write(tmp_path, {"question": {"problem": "2+2?"}, "label": label})
    with pytest.raises(
        UserError, match=r"labels.jsonl:1: `(steps|completions|text|chosen_completion)` must be"
    ):
        read_labelled(path)


@pytest.mark.parametrize(
    "record, place",
    [
        ({"problem": "\ud800", "steps": ["a"], "label": -1}, "the question: character 0"),
        ({"problem": "p", "steps": ["a", "b\ud800"], "label": -1}, "step 1: character 1"),
        ({"prompt": "p", "completions": ["\ud800"], "labels": [True]}, "step 0: character 0"),
        ({"input": "p Step 1: \ud800 ки", "label": "p Step 1: \ud800 +"}, "step 0: character 8"),
    ],
)
def test_half_a_character_is_named_before_a_tokenizer_fails_on_it(tmp_path, record, place):
    path = tmp_path / "solutions.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=f"solutions.jsonl:1: {place} is a lone surrogate"):
        read_labelled(path)


def test_ids_that_are_null_are_none(tmp_path):
    record = {"id": None, "problem": "?", "steps": ["a"], "label": -1}
    assert [s.id for s in read_labelled(write(tmp_path, record, record))] == ["0", "1"]


def test_math_shepherd():
    solution = math_shepherd_from_record(
        {
            "input": "How many? Step 1: 1 + 1 = 2 ки\nStep 2: 2 + 2 = 5 ки",
            "label": "How many? Step 1: 1 + 1 = 2 +\nStep 2: 2 + 2 = 5 -",
        }
    )
    assert solution.question == "How many?"
    assert solution.steps == ("Step 1: 1 + 1 = 2", "Step 2: 2 + 2 = 5")
    assert solution.verdicts == ("correct", "wrong")
    with pytest.raises(UserError, match="has 'x' where"):
        math_shepherd_from_record({"input": "Q Step 1: a ки", "label": "Q Step 1: a x"})
    # A rest without a mark: the last step that has one did not end the solution.
    rest = {"input": "Q Step 1: a ки\nStep 2: b", "label": "Q Step 1: a +\nStep 2: b"}
    assert solution.ended
    assert not math_shepherd_from_record(rest).ended


def test_a_step_that_no_trace_reaches_is_refused_before_the_list_up_to_it_is_made(tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"id": "t", "step_index": 10**12, "verdict": "wrong"}) + "\n")
    with pytest.raises(UserError, match=r"labels\.jsonl:1: `step_index`"):
        read_labels(file)
