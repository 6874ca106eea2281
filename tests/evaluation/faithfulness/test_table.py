"""Token estimates of steps, the stages' refusals, and what their files give as a table."""

import dataclasses
import json

import numpy as np
import pytest

from caspo_jax.confidence.forced import Measured
from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import Stage, Subject, build_table, forced_stage, probe_stage
from caspo_jax.evaluation.faithfulness.estimators import published_token, token_values
from caspo_jax.types import Step, Trace


def test_the_published_token_estimate():
    v = np.array([[-2.0, -4.0, -30.0], [-30.0, -30.0, -1.0]])
    mask = np.array([[True, True, False], [True, True, False]])
    np.testing.assert_allclose(published_token(v, mask), [3 / 8, 1.0])
    assert np.isnan(published_token(v, np.zeros_like(mask))).all()


def subject(**fields):
    steps = (Step(0, 1, 0, 3, "a"), Step(3, 4, 3, 5, "b"))
    trace = Trace("t", "q", None, None, (1,), (1, 2, 3, 4, 5), "a\n\nb", "eos", steps=steps, **fields)
    return Subject(trace, "q", "none", False, (2,), fields and None, ())


def test_recorded_statistics_come_first_and_unknown_tokens_are_left_out():
    nan = float("nan")
    found = token_values(
        subject(logprob=(nan, -1.0, -9.0, -2.0, -4.0), entropy=(nan, 1.0, 9.0, nan, nan)), None
    )
    assert found["mean_logprob"] == [pytest.approx(np.exp(-1)), pytest.approx(np.exp(-3))]
    assert found["sum_logprob"][1] == pytest.approx(np.exp(-6))
    assert found["entropy"] == [pytest.approx(np.exp(-1)), None]
    assert found["token"] == [None, None]


def test_the_checkpoints_statistics_fill_in_what_was_not_recorded():
    measured = Measured(
        stats={name: np.full(5, value) for name, value in (("logprob", -7.0), ("entropy", 2.0))},
        q=np.zeros(2),
        p=np.zeros(2),
        features=np.zeros((2, 0)),
    )
    found = token_values(subject(logprob=(-1.0,) * 5), measured)
    assert found["mean_logprob"] == pytest.approx([np.exp(-1)] * 2)
    assert found["entropy"] == pytest.approx([np.exp(-2)] * 2)
    assert found["token"] == [None, None]


def test_files_of_other_traces_are_refused(tmp_path):
    with pytest.raises(UserError, match="run the stage `decisiveness` first"):
        build_table([subject()], tmp_path, {})
    (tmp_path / "decisiveness.jsonl").write_text('{"id": "t", "scores": {"s": [0.5]}}\n')
    with pytest.raises(UserError, match="'t' has 2 steps, its record 1"):
        build_table([subject()], tmp_path, {})
    for line, error in (('{"id": "t"}', "no `scores`"), ('{"scores": {"s": []}}', "jsonl:1: malformed")):
        (tmp_path / "decisiveness.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=error):
            build_table([subject()], tmp_path, {})
    (tmp_path / "decisiveness.jsonl").write_text('{"id": "t", "scores": {"s": [0.5, null]}}\n')
    for row in ("5", '["x", null]'):
        (tmp_path / "hidden.jsonl").write_text(f'{{"id": "t", "q": {row}}}\n')
        with pytest.raises(UserError, match="'t': malformed record of a stage"):
            build_table([subject()], tmp_path, {})
    (tmp_path / "hidden.jsonl").write_text('{"id": "t", "q": [0.25, 0.5], "p": [0.25, 0.35]}\n')
    (tmp_path / "prefix.jsonl").write_text('{"id": "t", "steps": [1], "confidence": [0.9]}\n')
    found = build_table([subject()], tmp_path, {"t": [True, None]})
    assert found.trace_confidence["hidden"].tolist() == [0.35]  # the last p, as published
    np.testing.assert_array_equal(found.confidence["prefix"], [np.nan, 0.9])
    np.testing.assert_array_equal(found.decisiveness["s"], [0.5, np.nan])
    np.testing.assert_array_equal(found.right, [1.0, np.nan])


def test_a_table_by_hand(tmp_path):
    """Traces of three steps and of one: places, verdicts of another number of steps, and means of equal steps."""

    def with_steps(name, count):
        one = subject()
        steps = tuple(Step(k, k + 1, k, k + 1, "a") for k in range(count))
        return dataclasses.replace(one, trace=dataclasses.replace(one.trace, id=name, steps=steps))

    subjects = [with_steps("t", 3), with_steps("u", 1), with_steps("v", 1)]
    files = {
        "decisiveness": {"t": {"scores": {"s": [0.5, None, 0.7]}}, "u": {"scores": {"s": [0.2]}}},
        "token": {
            name: {field: [value] * count for field, value in zip(fields, (0.1, 0.2, 0.3, 0.4))}
            for name, count in (("t", 3), ("u", 1))
            for fields in (("token", "entropy", "mean_logprob", "sum_logprob"),)
        },
    }
    for stage, records in files.items():
        lines = [json.dumps({"id": name, **record}) for name, record in records.items()]
        (tmp_path / f"{stage}.jsonl").write_text("\n".join(lines))
    found = build_table(subjects, tmp_path, {"t": [True, False, None], "u": [True, True]})
    nan = np.nan
    expected = {
        "trace": [0, 0, 0, 1, 2],
        "index": [0, 1, 2, 0, 0],
        "position": [0, 0.5, 1, 0, 0],
        "right": [1, 0, nan, nan, nan],  # `u` has one step, not two
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)
    np.testing.assert_array_equal(found.decisiveness["s"], [0.5, nan, 0.7, 0.2, nan])
    for name, value in (("token", 0.1), ("entropy", 0.2), ("mean_logprob", 0.3), ("sum_logprob", 0.4)):
        np.testing.assert_array_equal(found.confidence[name], [value] * 4 + [nan])
        # Exactly: a rank correlation would see how many steps a trace has.
        np.testing.assert_array_equal(found.trace_confidence[name], [value, value, nan])
    assert set(found.confidence) == {"token", "entropy", "mean_logprob", "sum_logprob"}


def test_siblings_are_steps_after_the_same_prompt_and_tokens(tmp_path):
    def alike(name, ids, prompt=(1,)):
        one = subject()
        return dataclasses.replace(
            one, trace=dataclasses.replace(one.trace, id=name, token_ids=ids, prompt_ids=prompt)
        )

    subjects = [
        alike("a", (1, 2, 3, 4, 5)),
        alike("b", (1, 2, 3, 9, 9)),
        alike("c", (7, 2, 3, 4, 5)),
        alike("d", (1, 2, 3, 4, 5), prompt=(2,)),
    ]
    lines = [json.dumps({"id": s.id, "scores": {"s": [0.5, 0.5]}}) for s in subjects]
    (tmp_path / "decisiveness.jsonl").write_text("\n".join(lines))
    first, second = build_table(subjects, tmp_path, {}).prefix.reshape(4, 2).T
    assert first[0] == first[1] == first[2] != first[3]
    assert second[0] == second[1]
    assert len(set(second)) == 3
    assert not set(first) & set(second)


def test_settings_of_rcc_are_refused_before_a_manifest_is_written(tmp_path):
    with pytest.raises(UserError, match="delta = 2"):
        forced_stage(Stage([subject()], tmp_path, {}), None, ["hidden"], delta=2)
    assert not list(tmp_path.iterdir())


def test_without_a_readable_wrong_step_there_is_no_probe_and_the_run_goes_on(tmp_path):
    """Verdicts of traces that are longer than the context are of no use to a probe."""
    traces = [dataclasses.replace(subject(), group=f"q{k}", notes=("too_long",)) for k in range(2)]
    why = probe_stage(Stage(traces, tmp_path, {}), None, {"t": [True, False]})
    assert "right and wrong steps that the checkpoint can read" in why
