"""Questions to traces: what the searches are given."""

import contextlib
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

import caspo_jax as cj
from caspo_jax.errors import UserError
from caspo_jax.records import trace_from_record
from caspo_jax.sampling import loop
from caspo_jax.store import each_record
from caspo_jax.tasks import get_task
from caspo_jax.training.stages import Policy, decoding_progress, sample, sample_stage
from caspo_jax.types import Question


@pytest.mark.parametrize(
    "config, strategy", [(cj.CatConfig(), "sample"), (cj.SampleConfig(), "cat"), (cj.SampleConfig(), "beam")]
)
def test_a_strategy_of_another_config_is_refused(tmp_path, config, strategy):
    with pytest.raises(UserError, match=f"strategy='{strategy}': with a {type(config).__name__}"):
        sample_stage(None, [], tmp_path / "t.jsonl", config, strategy=strategy)
    assert not any(tmp_path.iterdir())


def test_a_search_that_stops_early_reads_answers_as_the_vote_does(tmp_path):
    task = get_task("graph")
    policy = Policy.load(task.policy_path)
    questions = task.questions("test", 4, seed=0)
    config = cj.CatConfig(
        num_branches=4,
        expand=1,
        vote="majority",
        stop_decided=True,
        sample=cj.SampleConfig(max_new_tokens=96, temperature=1.0),
    )

    def tokens(name, extract, equal=None):
        answers = tmp_path / f"{name}.jsonl"
        sample_stage(
            policy,
            questions,
            tmp_path / f"{name}_traces.jsonl",
            config,
            strategy="cat",
            answers=answers,
            extract=extract,
            equal=equal,
        )
        return [json.loads(line)["tokens"] for line in answers.read_text().splitlines()]

    whole = tokens("whole", lambda text: text)
    one = tokens("one", lambda text: "yes")
    alike = tokens("alike", lambda text: text, lambda a, b: True)
    assert one == alike
    assert sum(one) < sum(whole)


@pytest.mark.parametrize("strategy", ["sample", pytest.param("cat", marks=pytest.mark.ci)])
def test_a_restart_decodes_as_many_rows_as_the_run_that_it_goes_on_with(tmp_path, monkeypatch, strategy):
    """What is free on the device may be another number by then, and a batch of another shape differs in its last bits."""
    task = get_task("graph")
    policy = Policy.load(task.policy_path)
    questions = task.questions("test", 20, seed=0)
    decoding = cj.SampleConfig(
        max_new_tokens=8, temperature=1.0, num_samples=2 if strategy == "sample" else 1
    )
    config = decoding if strategy == "sample" else cj.CatConfig(num_branches=2, sample=decoding)
    seen = []

    def decode(free, name="t.jsonl", seed=0, overwrite=False, progress=None):
        monkeypatch.setattr(sample, "default_rows", lambda *_: (free, True))
        sample_stage(
            policy,
            questions,
            tmp_path / name,
            config,
            strategy=strategy,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
        settings = json.loads((tmp_path / f"{name}.manifest.json").read_text())["config"]
        return settings["batch_size"], (tmp_path / name).read_bytes()

    def kill(done, of, tokens=0, tokens_per_second=None):
        seen.append((done, of, tokens))
        if done > 16:  # two questions are decoded together, sixteen are written together
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(4, progress=kill)
    assert (tmp_path / "t.jsonl.partial").read_bytes().count(b"\n") == 16 * 2
    assert seen == sorted(seen)
    assert len({done for done, *_ in seen if done < 16}) > 1  # also within what is written together
    assert decode(32) == decode(4, "whole.jsonl")
    assert decode(32, seed=1, overwrite=True)[0] == 32  # other settings: another run


@pytest.mark.parametrize(
    "batch_size", [4, pytest.param(40, marks=pytest.mark.ci)]
)  # slots that are refilled, and one batch
def test_progress_tells_the_tokens_so_far_and_their_rate(tmp_path, monkeypatch, batch_size):
    task = get_task("graph")
    policy = Policy.load(task.policy_path)
    clock = itertools.count()
    monkeypatch.setattr(decoding_progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    config = cj.SampleConfig(max_new_tokens=96, temperature=1.0, num_samples=2)
    seen = []

    def progress(done, of, **shown):
        seen.append(shown)

    questions = task.questions("test", 18, seed=0)
    out = sample_stage(
        policy, questions, tmp_path / "t.jsonl", config, batch_size=batch_size, progress=progress
    )
    decoded = sum(len(trace.token_ids) for trace in each_record(out, trace_from_record))
    tokens = [shown["tokens"] for shown in seen]
    assert tokens == sorted(tokens)
    assert 0 < tokens[0] < tokens[-2] <= tokens[-1] == decoded
    assert "tokens_per_second" not in seen[0]
    assert seen[-1]["tokens_per_second"] == round((decoded - tokens[0]) / (len(seen) - 1))


@pytest.mark.parametrize("free, given, rows", [(16, None, 32), (15, None, 15), (4, None, 4), (16, 6, 6)])
def test_a_restart_decodes_what_the_device_has_room_for_or_what_it_is_told(
    tmp_path, monkeypatch, free, given, rows
):
    """The rows of a run take half of what is free, so half as much is enough for them. Who ran out of memory lowers
    --batch_size, and must not lose what is there."""
    task = get_task("graph")
    policy = Policy.load(task.policy_path)
    questions = task.questions("test", 3, seed=0)
    config = cj.SampleConfig(max_new_tokens=4, temperature=1.0)
    decoded = []

    def generate(*args, batch_size, progress, decode=sample.generate, **rest):
        decoded.append(batch_size)
        if len(decoded) == 1:
            raise KeyboardInterrupt
        return decode(*args, batch_size=batch_size, progress=progress, **rest)

    monkeypatch.setattr(sample, "generate", generate)
    for room, batch_size in ((32, None), (free, given)):
        monkeypatch.setattr(sample, "default_rows", lambda *_, room=room: (room, True))
        with contextlib.suppress(KeyboardInterrupt):
            sample_stage(policy, questions, tmp_path / "t.jsonl", config, batch_size=batch_size)
    assert decoded == [32, rows]
    settings = json.loads((tmp_path / "t.jsonl.manifest.json").read_text())["config"]
    assert settings["batch_size"] == 32
    assert (tmp_path / "t.jsonl").read_bytes().count(b"\n") == 3


def test_without_a_reader_no_trace_has_an_answer(tmp_path):
    """The rounds annotate what they explore: until then the last line is no answer."""
    task = get_task("graph")
    policy = Policy.load(task.policy_path)
    config = cj.CatConfig(num_branches=2, sample=cj.SampleConfig(max_new_tokens=16, temperature=1.0))
    questions = task.questions("test", 2, seed=0)
    for strategy in ("cat", "explore"):
        traces = sample_stage(policy, questions, tmp_path / f"{strategy}.jsonl", config, strategy=strategy)
        found = [json.loads(line) for line in traces.read_text().splitlines()]
        assert [trace["answer"] for trace in found] == [None] * len(found) != []


@pytest.mark.parametrize("strategy", ["sample", pytest.param("cat", marks=pytest.mark.ci)])
def test_groups_share_their_programs_whatever_their_prompts_and_however_few_the_last_has(
    tmp_path, monkeypatch, strategy
):
    policy = Policy.load(get_task("graph").policy_path)
    prompt = tuple(policy.tokenizer(get_task("graph").questions("test", 1, seed=0)[0].question)["input_ids"])
    lengths = [30] * 15 + [40] + [49] * 16 + [44] * 3  # groups of sixteen, two questions at once
    questions = [Question(f"q{i}", prompt_ids=(prompt * 4)[-n:]) for i, n in enumerate(lengths)]
    decoding = cj.SampleConfig(
        max_new_tokens=32, stop=(";",), temperature=1.0, num_samples=2 if strategy == "sample" else 1
    )
    config = decoding if strategy == "sample" else cj.CatConfig(num_branches=2, expand=1, sample=decoding)

    def decoded(count, name):
        before = loop._donated._cache_size()
        path = sample_stage(
            policy, questions[:count], tmp_path / name, config, strategy=strategy, batch_size=4
        )
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return found, loop._donated._cache_size() - before

    together, programs = decoded(35, "shared.jsonl")
    assert programs == 1
    some, more = decoded(33, "fewer.jsonl")
    assert more == 0
    monkeypatch.setattr(sample, "prompt_rooms", lambda longest, _: [0] * len(longest))
    alone, more = decoded(35, "own.jsonl")
    assert more == 1  # of the shorter prompts
    for one, other in zip(together, alone, strict=True):
        assert (one["id"], one["text"]) == (other["id"], other["text"])
        np.testing.assert_allclose(one["logprob"], other["logprob"], atol=1e-4)
    assert [trace["text"] for trace in some] == [trace["text"] for trace in together[: len(some)]]


def test_a_group_has_the_room_of_longer_prompts_where_a_row_grows_little_by_them():
    assert sample.prompt_rooms([200, 340, 30, 300, 160], 1000) == [340, 340, 160, 340, 160]
    assert sample.prompt_rooms([200, 200], 10) == [200, 200]
    assert sample.prompt_rooms([], 10) == []
