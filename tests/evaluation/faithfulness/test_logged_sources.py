"""Logs of evaluations to traces: lm-eval's samples and inspect-ai's."""

import json
import zipfile

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import prepare, read_sources
from tests.evaluation.faithfulness.conftest import QUESTION, TEXT


def test_lm_eval_chats_have_their_prompt(file, tokenizer, config):
    """A chat for a server is logged as JSON in a list of its own."""
    messages = [{"role": "user", "content": QUESTION}]
    samples = [
        {"doc_id": k, "arguments": {"gen_args_0": {"arg_0": asked, "arg_1": {}}}, "resps": [[TEXT]]}
        for k, asked in enumerate(([json.dumps(messages)], json.dumps([{"a": 1}]), json.dumps(3)))
    ]
    chat, other, number = read_sources(file(*samples))
    assert chat.messages == tuple(messages)
    assert (other.messages, other.prompt) == (None, json.dumps([{"a": 1}]))
    assert number.prompt == "3"
    (subject,) = prepare([chat], tokenizer, config)
    assert "no_prompt" not in subject.notes


def test_lm_eval_samples(file, tokenizer, config):
    sample = {
        "doc_id": 3,
        "target": "82",
        "arguments": {"gen_args_0": {"arg_0": QUESTION, "arg_1": {"until": []}}},
        "resps": [[TEXT]],
        "filter": "strict-match",
        "exact_match": 1.0,
    }
    listed = {
        **sample,
        "doc_id": 4,
        "arguments": [[QUESTION, {}]],
        "exact_match": 0.0,
        "resps": [[TEXT, TEXT]],
    }
    found = read_sources(file(sample, {**sample, "filter": "flexible-extract"}, listed))
    assert [(s.id, s.prompt, s.gold, s.correct) for s in found] == [
        ("3", QUESTION, "82", True),
        ("4/0", QUESTION, "82", False),
        ("4/1", QUESTION, "82", False),
    ]
    with pytest.raises(UserError, match="only samples of generation tasks"):
        read_sources(file({"doc_id": 1, "resps": [[["-1.5", "False"]]]}))


def test_two_documents_of_one_number_are_not_one(file):
    """Joined files of two tasks: `doc_id` begins anew, and both models said nothing."""
    first = {"doc_id": 0, "doc_hash": "a", "arguments": [["1?", {}]], "resps": [[""]]}
    with pytest.raises(UserError, match=r"in\.jsonl:2: id '0' was used before"):
        read_sources(file(first, {**first, "doc_hash": "b", "arguments": [["2?", {}]]}))


def inspect_sample(identity, **changes):
    message = {
        "role": "assistant",
        "content": [{"type": "reasoning", "reasoning": TEXT}, {"type": "text", "text": "82"}],
    }
    return {
        "id": identity,
        "epoch": 1,
        "input": QUESTION,
        "target": "82",
        "output": {"choices": [{"message": message, "stop_reason": "stop"}]},
        "scores": {"match": {"value": "C"}},
        **changes,
    }


def test_inspect_logs(tmp_path, tokenizer, config):
    log = tmp_path / "log.json"
    asked = [{"role": "user", "content": QUESTION}, {"role": "user", "content": "k?"}]
    samples = [
        inspect_sample("s1"),
        inspect_sample("s1", epoch=2, input=asked, scores={"match": {"value": "I"}}),
    ]
    log.write_text(json.dumps({"version": 2, "samples": samples}))
    archive = tmp_path / "log.eval"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("header.json", "{}")
        for i, sample in enumerate(samples):
            file.writestr(f"samples/{i}.json", json.dumps(sample))
    for path in (log, archive):
        found = read_sources(path)
        assert [(s.id, s.group, s.correct) for s in found] == [("s1", "s1", True), ("s1/epoch2", "s1", False)]
        first, second = prepare(found, tokenizer, config)
        assert first.thinking == "closed"
        assert [s.text for s in first.trace.steps] == TEXT.split("\n\n")
        assert first.trace.text.endswith("</think>\n\n82")
        assert second.trace.prompt_ids != first.trace.prompt_ids
    failed = inspect_sample("s2", output={"model": "m", "choices": []}, scores=None)
    log.write_text(json.dumps({"version": 2, "samples": [*samples, failed]}))
    *_, third = read_sources(log)
    assert (third.id, third.text) == ("s2", "")  # a failure is counted, not lost
    assert "no_steps" in prepare([third], tokenizer, config)[0].notes
    archive.write_bytes(b"no zip")
    with pytest.raises(UserError, match="not a readable"):
        read_sources(archive)
