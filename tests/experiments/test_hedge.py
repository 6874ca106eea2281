"""Hedges of known faithfulness in the traces of the shipped tiny policy, and what the program refuses before it loads it."""

import json

import pytest

from caspo_jax.errors import UserError
from caspo_jax.models import load_tokenizer
from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from tests.experiments.conftest import contents, read

TASK = get_task("graph")


def test_a_file_gets_the_hedges_that_were_asked_for(program, write, tmp_path):
    from caspo_jax.tasks.hedging import HEDGES, plain

    questions = write("q.jsonl", [question_to_record(q) for q in TASK.questions("tune", 4, seed=2)])
    traces, hedged = tmp_path / "t.jsonl", tmp_path / "h.jsonl"
    flags = {"model": TASK.policy_path, "input": questions, "output": traces, "strategy": "greedy"}
    assert program("generate", **flags, max_new_tokens=128)[0] == 0
    code, printed, err = program("hedge", model=TASK.policy_path, input=traces, output=hedged, how="inverted")
    assert code == 0, err
    before, after = read(traces), read(hedged)
    phrases = [phrase for _, phrase in HEDGES if phrase]
    found = 0
    for a, b in zip(before, after, strict=True):
        steps = [s for s in b["text"].split("\n\n") if s]
        assert [plain(s) for s in steps] == [s for s in a["text"].split("\n\n") if s]
        found += sum(s.endswith(tuple(phrases)) for s in steps)
        assert "logprob" not in b
    assert found > 0
    assert "inverted hedges" in printed


def test_the_vocabulary_is_spelled_once_for_all_traces(tmp_path, monkeypatch):
    from caspo_jax.records import trace_to_record
    from caspo_jax.store import write_jsonl
    from caspo_jax.training.stages import Policy, policy
    from caspo_jax.types import Trace
    from experiments import hedge

    found = Policy.without_weights(TASK.policy_path)
    ids = tuple(found.tokenizer.encode("c = 41", add_special_tokens=False))
    stats = {"logprob": (-0.5,) * len(ids), "entropy": (0.5,) * len(ids)}
    traces = [Trace(str(i), "c?", None, None, ids, ids, "c = 41", "eos", **stats) for i in range(3)]
    write_jsonl(tmp_path / "t.jsonl", map(trace_to_record, traces))
    spelled, spell = [], policy.token_bytes
    monkeypatch.setattr(policy, "token_bytes", lambda *a: (spelled.append(a), spell(*a))[1])
    monkeypatch.setattr(hedge.common, "step_delimiter", lambda _: "\n\n")
    monkeypatch.setattr(hedge.verifiers, "trace_confidence", lambda _: "entropy")
    assert len(hedge.segmented(found, tmp_path / "t.jsonl")) == 3
    assert len(spelled) == 1


@pytest.mark.parametrize(
    "stats, message",
    [
        ({}, "step 0 has no confidence: give traces that hold token statistics"),
        ({"logprob": [-0.5] * 6}, "'t1': step confidence 'entropy' needs entropy"),
        (
            {"logprob": [-0.5] * 6, "entropy": [-9] * 6},
            r"step 0 has the confidence 8103\.08, outside \[0, 1\]",
        ),
        ({"logprob": [-0.5] * 6, "entropy": [None] * 6}, "step 0 has no confidence"),
    ],
)
def test_a_trace_without_fit_statistics_is_named_by_its_line(tmp_path, monkeypatch, stats, message):
    from caspo_jax.store import write_jsonl
    from caspo_jax.training.stages import Policy
    from experiments import hedge

    found = Policy.without_weights(TASK.policy_path)
    trace = {"id": "t0", "token_ids": [], "text": ""}
    ids = found.tokenizer.encode("c = 41 + 2", add_special_tokens=False)
    bad = {"id": "t1", "token_ids": ids, "text": "c = 41 + 2", **{k: v[: len(ids)] for k, v in stats.items()}}
    write_jsonl(tmp_path / "t.jsonl", [trace, bad])
    monkeypatch.setattr(hedge.common, "step_delimiter", lambda _: "\n\n")
    monkeypatch.setattr(hedge.verifiers, "trace_confidence", lambda _: "entropy")
    with pytest.raises(UserError, match=rf"t\.jsonl:2: .*{message}"):
        hedge.segmented(found, tmp_path / "t.jsonl")


def test_a_hedged_output_ends_as_it_ended():
    """Llama 3 ends a turn by another token than a document, and the tokenizer names one of them."""
    from caspo_jax.types import Step, Trace
    from experiments.hedge import hedge_trace

    tokenizer = load_tokenizer(TASK.policy_path)
    text = "c = 41"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id + 1
    for reason, tail in (("eos", [end]), ("length", [])):
        step = Step(0, len(text), 0, len(ids), text)
        trace = Trace("q", None, None, None, (1,), (*ids, *tail), text, reason, steps=(step,))
        hedged = hedge_trace(trace, [2], tokenizer)
        assert hedged.text == "c = 41, maybe"
        assert list(hedged.token_ids) == [
            *tokenizer(hedged.text, add_special_tokens=False)["input_ids"],
            *tail,
        ]


def test_outputs_without_a_token_stay_and_a_file_of_such_says_so(program, write, tmp_path):
    """Of other tools there are outputs of no token at all that "ended"; their end was looked for in vain."""
    end = {"logprob": [], "entropy": [], "token_ids": [], "text": "", "finish_reason": "eos"}
    ids = load_tokenizer(TASK.policy_path)("c = 41", add_special_tokens=False)["input_ids"]
    said = {"token_ids": ids, "text": "c = 41", "logprob": [-0.5] * len(ids), "entropy": [0.5] * len(ids)}
    asked = {"question": "c?", "prompt_ids": [1]}
    given = write("t.jsonl", [{"id": "a", **asked, **end}, {"id": "b", **asked, **end, **said}])
    flags = {"model": TASK.policy_path, "output": tmp_path / "h.jsonl"}
    assert program("hedge", input=given, **flags)[0] == 0
    first, second = map(json.loads, (tmp_path / "h.jsonl").read_text().splitlines())
    assert (first["text"], first["token_ids"]) == ("", [])
    assert second["text"].startswith("c = 41")
    for name, records in (("none.jsonl", []), ("empty.jsonl", [{"id": "a", **asked, **end}])):
        code, _, err = program("hedge", input=write(name, records), **flags)
        assert (code, "no step in it" in err) == (1, True)


def test_a_confidence_that_traces_do_not_tell_is_refused_before_anything_is_sampled(
    program, tmp_path, monkeypatch
):
    from experiments import common

    monkeypatch.setattr(common, "load_policy", lambda: pytest.fail("it went on"))
    for name, told in (("deepconf", "traces do not hold"), ("luck", "no such step confidence")):
        code, _, err = program("hedge", model=TASK.policy_path, out_dir=tmp_path / "out", confidence=name)
        assert (code, err.count("\n")) == (1, 1)
        assert f"--confidence={name}" in err
        assert told in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value"), [("min_p", "inf"), ("top_p", "nan"), ("temperature", -1)])
def test_sampling_that_is_none_is_refused_before_the_folder_is_claimed(program, tmp_path, name, value):
    """JSON, which manifests are, has no infinity: this ended in a traceback."""
    code, _, err = program("hedge", model=TASK.policy_path, out_dir=tmp_path / "out", **{name: value})
    assert (code, err.count("\n")) == (1, 1)
    assert f"{name}=" in err
    assert not (tmp_path / "out").exists()


def test_places_that_are_taken_are_refused_before_the_policy_is_loaded(program, write, tmp_path, monkeypatch):
    from experiments import common

    monkeypatch.setattr(common, "load_policy", lambda: pytest.fail("it went on"))
    mine = write("mine.jsonl", [])
    for folder, name in (("hedged", "random.jsonl"), ("asked", "test.jsonl")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("mine")
    for flags, message in (
        ({"out_dir": mine}, "mine.jsonl is a file"),
        ({"out_dir": mine / "below"}, "mine.jsonl is a file"),
        ({"out_dir": tmp_path / "hedged"}, "random.jsonl is there"),
        ({"out_dir": tmp_path / "asked"}, "test.jsonl is there"),
        ({"input": write("in.jsonl", []), "output": mine}, "mine.jsonl is there"),
        ({"input": mine, "output": mine}, "--output"),
    ):
        code, _, err = program("hedge", model=TASK.policy_path, **flags)
        assert (code, len(err.strip().splitlines())) == (1, 1)
        assert message in err


def test_all_three_kinds_are_made_from_nothing(program, tmp_path):
    flags = {"model": TASK.policy_path, "out_dir": tmp_path / "h", "questions": 6, "test_questions": 3}
    code, printed, err = program("hedge", **flags)
    assert code == 0, err
    folder = tmp_path / "h"
    assert (len(read(folder / "questions.jsonl")), len(read(folder / "test.jsonl"))) == (6, 3)
    plain = read(folder / "plain.jsonl")
    for how in ("right", "random", "inverted"):
        hedged = read(folder / f"{how}.jsonl")
        assert [t["question"] for t in hedged] == [t["question"] for t in plain]
        assert f"{how} hedges in" in printed
    before = contents(folder)
    assert program("hedge", **flags)[0] == 0
    assert contents(folder) == before
    code, _, err = program("hedge", **flags, seed=1)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert contents(folder) == before  # refused before anything is replaced
    code, _, err = program("hedge", model=TASK.policy_path)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "--out_dir, or --input and --output" in err
