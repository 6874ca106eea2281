"""Stages that read a round's traces keep no more of them than they work with."""

import dataclasses
import gc
import types
import weakref

import pytest

from caspo_jax.errors import UserError
from caspo_jax.outputs import JsonlOutput
from caspo_jax.preferences import PairConfig
from caspo_jax.records import trace_to_record
from caspo_jax.steps import StatedEquations
from caspo_jax.store import read_jsonl, write_jsonl
from caspo_jax.tasks import get_task
from caspo_jax.training.stages import Policy, annotate_stage, pairs_stage
from caspo_jax.training.stages import pairs as pairs_module
from caspo_jax.training.stages import policy as policy_module
from caspo_jax.training.stages.pairs import verified_row, verified_traces
from caspo_jax.types import Step, Trace


@pytest.fixture
def policy():
    found = Policy.without_weights(get_task("chain").policy_path)
    return Policy(found.model, found.tokenizer, found.path, "digest", found.settings)


@pytest.fixture
def most_alive(monkeypatch):
    """The most traces of a file that were in memory at once."""
    alive, seen = [], types.SimpleNamespace(most=0)

    def counted(record, read=policy_module.trace_from_record):
        trace = read(record)
        alive.append(weakref.ref(trace))
        gc.collect()
        seen.most = max(seen.most, sum(ref() is not None for ref in alive))
        return trace

    monkeypatch.setattr(policy_module, "trace_from_record", counted)
    gc.freeze()  # what other tests left behind would make each collection take seconds
    yield seen
    gc.unfreeze()


def write_traces(path, policy, count, **fields):
    ids = tuple(policy.tokenizer.encode("1 + 1 = 2", add_special_tokens=False))
    text = policy.tokenizer.decode(ids)
    stats = {"logprob": (-0.5,) * len(ids), "entropy": (0.5,) * len(ids)} | fields
    traces = [Trace(f"q/{i}", "1 + 1?", None, None, ids[:1], ids, text, "eos", **stats) for i in range(count)]
    write_jsonl(path, map(trace_to_record, traces))
    return traces


def annotated(policy, tmp_path, **options):
    output = tmp_path / "annotated.jsonl"
    annotate_stage(
        policy,
        tmp_path / "traces.jsonl",
        output,
        StatedEquations(),
        extract=lambda text: text,
        equal=str.__eq__,
        batch_size=3,
        **options,
    )
    return [record for _, record in read_jsonl(output)]


def test_annotate_holds_a_batch_of_the_traces(policy, tmp_path, most_alive):
    write_traces(tmp_path / "traces.jsonl", policy, 11)
    done = []
    records = annotated(policy, tmp_path, progress=lambda *at: done.append(at))
    assert [r["id"] for r in records] == [f"q/{i}" for i in range(11)]
    assert done == [(3, 11), (6, 11), (9, 11), (11, 11)]
    assert most_alive.most <= 2 * 3  # a batch, and the next as it is read


def test_long_traces_are_annotated_fewer_together(policy, tmp_path, monkeypatch):
    """A judge reads every prefix of them: a batch of 256 long traces was hours of work that a kill lost."""
    traces = write_traces(tmp_path / "traces.jsonl", policy, 4)
    long = dataclasses.replace(traces[0], id="long", text="", token_ids=traces[0].token_ids * 9)
    long = dataclasses.replace(long, logprob=None, entropy=None)
    write_jsonl(tmp_path / "traces.jsonl", map(trace_to_record, [*traces[:2], long, *traces[2:]]))
    whole = annotated(policy, tmp_path)
    for path in tmp_path.glob("annotated*"):
        path.unlink()
    monkeypatch.setattr(policy_module, "_BATCH_TOKENS", 2 * len(traces[0].token_ids))
    done = []
    assert annotated(policy, tmp_path, progress=lambda *at: done.append(at)) == whole
    assert done == [(2, 5), (3, 5), (5, 5)]


def test_annotate_refuses_the_last_trace_before_it_writes_the_first(policy, tmp_path):
    write_traces(tmp_path / "traces.jsonl", policy, 7)
    with open(tmp_path / "traces.jsonl", "a") as file:
        file.write('{"id": "bad", "text": "", "token_ids": [-1]}\n')
    with pytest.raises(UserError, match=r"traces\.jsonl:8: "):
        annotated(policy, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["traces.jsonl"]


def test_annotate_names_the_line_without_the_statistics_that_a_confidence_needs(policy, tmp_path):
    write_traces(tmp_path / "traces.jsonl", policy, 2, entropy=None)
    with pytest.raises(UserError, match=r"traces\.jsonl:1: trace 'q/0' holds logprob of its tokens"):
        annotated(policy, tmp_path, confidence="entropy")


def test_verified_steps_are_read_one_trace_at_a_time(policy, tmp_path, most_alive):
    write_traces(tmp_path / "traces.jsonl", policy, 5)
    rows = verified_traces(policy.each_trace(tmp_path / "traces.jsonl", check=verified_row))
    assert rows == []
    assert most_alive.most <= 2


@pytest.mark.parametrize("limit", ["_WRITTEN", "_WRITTEN_TOKENS"])
def test_pairs_are_records_a_part_at_a_time(tmp_path, monkeypatch, limit):
    """As records, 100,000 pairs take more memory than they do as pairs; those of long thoughts do so much earlier."""
    whole = Policy.load(get_task("chain").policy_path)
    texts = [(f"1 + 1 = {answer}", verdict) for answer, verdict in ((2, "correct"), (3, "wrong"))]
    traces = []
    for question in range(5):
        for text, verdict in texts:
            ids = tuple(whole.tokenizer.encode(text, add_special_tokens=False))
            step = Step(0, len(text), 0, len(ids), text, confidence=0.5, verdict=verdict)
            name = f"{question}/{verdict}"
            asked = (question + 1,)
            traces.append(Trace(name, f"{question}?", None, None, asked, ids, text, "eos", steps=(step,)))
    write_jsonl(tmp_path / "a.jsonl", map(trace_to_record, traces))
    sizes, append = [], JsonlOutput.append
    monkeypatch.setattr(JsonlOutput, "append", lambda out, rows: (sizes.append(len(rows)), append(out, rows)))
    monkeypatch.setattr(pairs_module, limit, 2)  # pairs, or tokens before them: one each
    config = PairConfig(kinds=("wrong",))
    pairs_stage(whole, tmp_path / "a.jsonl", tmp_path / "p.jsonl", config, StatedEquations())
    assert sizes == [2, 2, 1]
    assert len({record["id"] for _, record in read_jsonl(tmp_path / "p.jsonl")}) == 5
