"""Records of other tools to outputs, and outputs to traces with token ids."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import (
    count_subjects,
    prepare,
    read_sources,
    subject_from_record,
    subject_to_record,
)
from caspo_jax.models import RopeConfig, load_tokenizer
from caspo_jax.models.config import ModelConfig
from caspo_jax.records import trace_to_record
from caspo_jax.tasks import get_task
from caspo_jax.types import Step, Trace

TASK = get_task("graph")
QUESTION = "a = 41; k: a * 2. k?"
TEXT = "k: a * 2, so k = 82\n\nanswer: 82"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TASK.policy_path)


@pytest.fixture(scope="module")
def config():
    return ModelConfig.from_hf(TASK.policy_path)


@pytest.fixture
def file(tmp_path):
    def save(*records, name="in.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        return path

    return save


def vllm_record(tokenizer, top=5):
    ids = [*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]
    entries = []
    for token in ids:
        others = {str((token + k) % 300): {"logprob": -1.0 - k, "rank": k + 1} for k in range(1, top)}
        entries.append({str(token): {"logprob": -0.5, "rank": 1, "decoded_token": "x"}} | others)
    output = {"index": 0, "text": TEXT, "token_ids": ids, "logprobs": entries, "finish_reason": "stop"}
    return {"request_id": "r1", "prompt": QUESTION, "prompt_token_ids": [1, 2, 3], "outputs": [output]}


def test_vllm_outputs_keep_ids_and_logprobs(file, tokenizer, config):
    record = vllm_record(tokenizer)
    (source,) = read_sources(file(record))
    assert (source.id, source.format, source.prompt_ids) == ("r1", "vllm", (1, 2, 3))
    (subject,) = prepare([source], tokenizer, config)
    assert subject.trace.token_ids == tuple(record["outputs"][0]["token_ids"])
    assert [s.text for s in subject.trace.steps] == ["k: a * 2, so k = 82", "answer: 82"]
    assert subject.trace.logprob == (-0.5,) * len(subject.trace.token_ids)
    assert subject.mean_top5 == pytest.approx([(-0.5 - 2 - 3 - 4 - 5) / 5] * len(subject.trace.token_ids))
    assert subject.notes == ()
    (fewer,) = prepare(read_sources(file(vllm_record(tokenizer, top=3))), tokenizer, config)
    assert fewer.mean_top5 is None
    assert fewer.trace.logprob is not None


def test_an_improbable_token_is_not_one_of_the_most_probable(file, tokenizer):
    record = vllm_record(tokenizer, top=1)
    token = record["outputs"][0]["token_ids"][0]
    record["outputs"][0]["logprobs"][0] = {
        str(token): {"logprob": -9.0, "rank": 60},
        **{str(token + k): {"logprob": -float(k), "rank": k} for k in range(1, 6)},
    }
    (source,) = read_sources(file(record))
    assert source.tokens[0].logprob == -9.0
    assert source.tokens[0].top == (-1.0, -2.0, -3.0, -4.0, -5.0)


@pytest.mark.parametrize("rank, entries, top", [(1, 5, 5), (4, 5, 5), (5, 5, 5), (6, 6, 6), (7, 6, 5)])
def test_a_token_of_rank_n_among_n_is_one_of_the_most_probable(file, tokenizer, config, rank, entries, top):
    record = vllm_record(tokenizer)
    (output,) = record["outputs"]
    output["logprobs"] = [
        {str(token): {"logprob": -float(rank), "rank": rank}}
        | {
            str((token + k) % 300): {"logprob": -float(k), "rank": k}
            for k in [k for k in range(1, 7) if k != rank][: entries - 1]
        }
        for token in output["token_ids"]
    ]
    (source,) = read_sources(file(record))
    assert {len(token.top) for token in source.tokens} == {top}
    (subject,) = prepare([source], tokenizer, config)
    assert subject.mean_top5 == pytest.approx([-3.0] * len(output["token_ids"]))


def test_completions_find_ids_by_bytes(file, tokenizer, config):
    ids = tokenizer(TEXT)["input_ids"]
    names = [tokenizer.decode([i]) for i in ids]
    content = [{"token": n, "bytes": list(n.encode()), "logprob": -0.1, "top_logprobs": []} for n in names]
    chat = {
        "custom_id": "c",
        "body": {"messages": [{"role": "user", "content": QUESTION}]},
        "response": {"body": {"choices": [{"message": {"content": TEXT}, "logprobs": {"content": content}}]}},
    }
    old = {
        "id": "o",
        "prompt": QUESTION,
        "choices": [
            {
                "text": TEXT,
                "logprobs": {"tokens": names, "token_logprobs": [-0.1] * len(ids), "top_logprobs": None},
            },
            {"text": TEXT, "finish_reason": "length"},
        ],
    }
    unknown = {
        "id": "u",
        "question": QUESTION,
        "choices": [{"text": TEXT, "logprobs": {"tokens": [TEXT], "token_logprobs": [-1.0]}}],
    }
    found = prepare(read_sources(file(chat, old, unknown)), tokenizer, config)
    assert [s.id for s in found] == ["c", "o/0", "o/1", "u"]
    for subject in found[:2]:
        assert subject.trace.token_ids == tuple(ids)
        assert subject.trace.logprob == (-0.1,) * len(ids)
        assert subject.notes == ()
    assert found[0].trace.prompt_ids == tuple(
        tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)[
            "input_ids"
        ]
    )
    assert found[2].trace.finish_reason == "length"
    for subject in found[2:]:
        assert "retokenised" in subject.notes
        assert subject.trace.logprob is None
    assert found[1].group == found[2].group == QUESTION


@pytest.mark.parametrize("samples", [1, 3])
def test_a_question_is_known_by_what_was_asked_not_by_the_servers_number(file, tokenizer, config, samples):
    """Request ids number a run: one more sample a question must not part it from another policy's run, nor meet by number."""
    outputs = [{"text": TEXT} for _ in range(samples)]
    records = (
        {"request_id": "0", "prompt": QUESTION, "outputs": outputs},
        {"id": "cmpl-7", "question": QUESTION, "choices": outputs},
        {"doc_id": 5, "doc_hash": "d0", "arguments": [[QUESTION]], "resps": [[TEXT] * samples]},
        {"id": "nothing asked", "prompt": "", "choices": outputs},
    )
    found = prepare(read_sources(file(*records)), tokenizer, config)
    asked = [QUESTION, QUESTION, "d0", "nothing asked"]
    assert [s.group for s in found] == [group for group in asked for _ in range(samples)]
    assert found[-1].trace.prompt_ids == ()


@pytest.mark.parametrize(
    ("field", "value", "error"), [("logprob", "x", "could not convert"), ("bytes", 10**9, "must be a list")]
)
def test_a_malformed_token_is_named_with_its_line(file, field, value, error):
    """At the line, not later; and a number of bytes is no bytes: `bytes(n)` would be n zeros."""
    token = {"token": "a", "bytes": [97], "logprob": -1.0, "top_logprobs": []} | {field: value}
    record = {"id": "c", "choices": [{"message": {"content": "a"}, "logprobs": {"content": [token]}}]}
    with pytest.raises(UserError, match=rf"in\.jsonl:1: .*{error}"):
        read_sources(file(record))


def test_half_a_character_is_one_odd_trace_and_not_the_end(file, tokenizer, config):
    record = {"id": "half", "question": QUESTION, "text": "k: a \ud83d, so k = 3\n\nanswer: 3"}
    logprobs = {"tokens": ["\ud83d"], "token_logprobs": [-1.0]}
    served = {"id": "served", "prompt": QUESTION, "choices": [{"text": "\ud83d", "logprobs": logprobs}]}
    half, served = prepare(read_sources(file(record, served)), tokenizer, config)
    assert half.notes == served.notes == ("retokenised", "text_differs")
    assert [step.text for step in half.trace.steps] == ["k: a ?, so k = 3", "answer: 3"]


def test_a_chat_template_that_refuses_the_messages_is_one_clear_line(file, tokenizer, config):
    strict = load_tokenizer(TASK.policy_path)
    strict.chat_template = "{{ raise_exception('no tools here') }}"
    record = {"id": "m", "messages": [{"role": "tool", "content": "x"}], "text": TEXT}
    with pytest.raises(UserError, match=r"'m'.*chat template fails.*no tools here"):
        prepare(read_sources(file(record)), strict, config)


def test_a_chat_that_names_special_tokens_keeps_ids_and_logprobs(file, tokenizer, config):
    """Servers list the token that ended the output, by its name."""
    ids = [*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]
    names = [tokenizer.decode([i]) for i in ids[:-1]] + [tokenizer.eos_token]
    content = [{"token": n, "bytes": list(n.encode()), "logprob": -0.1, "top_logprobs": []} for n in names]
    choice = {"message": {"content": TEXT}, "logprobs": {"content": content}, "finish_reason": "stop"}
    (found,) = prepare(
        read_sources(file({"id": "a", "question": QUESTION, "choices": [choice]})), tokenizer, config
    )
    assert found.trace.token_ids == tuple(ids)
    assert found.trace.logprob == (-0.1,) * len(ids)
    assert found.trace.text == TEXT
    assert found.notes == ()


def test_a_batch_is_known_by_the_names_that_its_writer_gave(file):
    """`id` is the server's, another one in every run."""
    body = {"choices": [{"message": {"content": TEXT}}]}
    first, second = (
        {
            "id": f"batch_req_{k}",
            "custom_id": f"q{k}",
            "response": {"status_code": 200, "body": body},
            "error": None,
        }
        for k in (1, 2)
    )
    assert [s.id for s in read_sources(file(first, second))] == ["q1", "q2"]


def test_reasoning_that_was_cut_stays_open(file, tokenizer, config):
    choices = [
        {"message": {"content": None, "reasoning_content": TEXT}, "finish_reason": "length"},
        {"message": {"content": "82", "reasoning_content": TEXT}, "finish_reason": "stop"},
        {"message": {"content": "82", "reasoning_content": "", "reasoning": TEXT}, "finish_reason": "stop"},
    ]
    found = prepare(
        read_sources(file({"id": "a", "question": QUESTION, "choices": choices})), tokenizer, config
    )
    assert [s.thinking for s in found] == ["unclosed", "closed", "closed"]
    assert [len(s.trace.steps) for s in found] == [2, 2, 2]
    assert "</think>" not in found[0].trace.text


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
    archive.write_bytes(b"no zip")
    with pytest.raises(UserError, match="not a readable"):
        read_sources(archive)


def test_raw_text_and_generic_records(tmp_path, file, tokenizer, config):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_text("<think>one\n\ntwo", encoding="utf-8")
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    found = prepare(read_sources(folder), tokenizer, config)
    assert [(s.id, s.thinking, len(s.trace.steps)) for s in found] == [("a", "none", 0), ("b", "unclosed", 2)]
    assert found[0].notes == ("retokenised", "no_steps", "no_prompt")
    assert found[0].group == "a"
    (alone,) = prepare(read_sources(folder / "a.txt"), tokenizer, config)
    assert len(alone.trace.steps) == 2  # no trace of the file thinks, so all of the text is taken
    (alone,) = prepare(read_sources(folder / "a.txt"), tokenizer, config, which="thinking")
    assert alone.trace.steps == ()
    (record,) = read_sources(file({"question": QUESTION, "response": TEXT, "answer": 82, "correct": True}))
    assert (record.id, record.gold, record.correct, record.question) == ("0", "82", True, QUESTION)


def test_our_traces_keep_ids_statistics_and_verdicts(file, tokenizer, config):
    ids = tuple(tokenizer(TEXT)["input_ids"])
    second = len(tokenizer("k: a * 2, so k = 82\n\n")["input_ids"])
    steps = (
        Step(0, 19, 0, second, "k: a * 2, so k = 82", verdict="correct", verifier="exact:graph"),
        Step(21, 31, second, len(ids), "answer: 82", verdict="wrong", verifier="exact:graph"),
    )
    trace = Trace(
        id="t/0",
        question=QUESTION,
        gold="82",
        prompt=None,
        prompt_ids=(1, 2),
        token_ids=ids,
        text=TEXT,
        finish_reason="eos",
        steps=steps,
        logprob=(-0.1,) * len(ids),
        entropy=(0.2,) * len(ids),
    )
    (subject,) = prepare(read_sources(file(trace_to_record(trace))), tokenizer, config)
    assert [s.verdict for s in subject.trace.steps] == ["correct", "wrong"]
    assert (subject.trace.token_ids, subject.trace.prompt_ids, subject.group) == (ids, (1, 2), QUESTION)
    assert subject.trace.entropy == (0.2,) * len(ids)
    row = subject.row()
    assert row.starts == (0, second, len(ids))
    masks = subject.masks()
    assert masks.shape == (2, len(ids))
    assert not masks[0, second - 1]  # the delimiter is not counted
    assert masks[1, second:].all()
    again = subject_from_record(json.loads(json.dumps(subject_to_record(subject))))
    assert again == subject


def test_counts_of_odd_traces(file, tokenizer, config):
    long = "x " * 600
    records = [
        {"id": "plain", "question": QUESTION, "text": "<think>a\n\nb</think>c"},
        {"id": "none", "question": QUESTION, "text": "just an answer"},
        {"id": "unclosed", "question": QUESTION, "text": "<think>a\n\nb"},
        {"id": "giant", "question": QUESTION, "text": f"<think>{'w ' * 1200}</think>"},
        {"id": "no prompt", "text": "<think>a</think>"},
        {"id": "long", "question": QUESTION, "text": f"<think>{long}</think>"},
    ]
    found = prepare(read_sources(file(*records)), tokenizer, config)
    counts = count_subjects(found)
    assert {
        k: counts[k]
        for k in ("traces", "questions", "no_thinking", "unclosed", "giant", "no_steps", "no_prompt")
    } == {
        "traces": 6,
        "questions": 2,
        "no_thinking": 1,
        "unclosed": 1,
        "giant": 1,
        "no_steps": 1,
        "no_prompt": 1,
    }
    assert counts["too_long"] == 2
    assert not found[-1].readable
    yarn = dataclasses.replace(config, rope=RopeConfig("yarn", factor=1000.0))
    assert count_subjects(prepare(read_sources(file(*records)), tokenizer, yarn))["too_long"] == 0
    assert np.isfinite(counts["steps"])


@pytest.mark.parametrize(
    "record, message",
    [
        ({"id": 1, "number": 3}, "in.jsonl:1: a trace of no known kind"),
        ({"outputs": [{"token_ids": [1, 2], "text": "a", "logprobs": [None]}]}, "1 logprobs for 2 token_ids"),
        (
            {"outputs": [{"token_ids": [1], "text": "a", "logprobs": [{"2": {"logprob": -1}}]}]},
            "do not hold its own",
        ),
        ({"choices": [{"finish_reason": "stop"}]}, "neither `text` nor a `message`"),
        ({"choices": [{"message": "said"}]}, "in.jsonl:1: malformed record"),
        ({"choices": [{"text": "a", "logprobs": [1.0]}]}, "in.jsonl:1: malformed record"),
        ({"output": {"choices": ["said"]}}, "in.jsonl:1: malformed record"),
        ({"outputs": [{"token_ids": ["a"], "text": "a"}]}, "in.jsonl:1: malformed record"),
        ({"resps": [[[-1.2, True]]]}, "only samples of generation tasks"),
    ],
)
def test_bad_records_name_their_line(file, record, message):
    with pytest.raises(UserError, match=message):
        read_sources(file(record))


def test_bad_files(tmp_path, file):
    with pytest.raises(UserError, match="was used before, at"):
        read_sources(file({"id": "a", "text": "x"}, {"id": "a", "text": "y"}))
    with pytest.raises(UserError, match="no traces in it"):
        read_sources(file())
    with pytest.raises(UserError, match=r"no \.txt files"):
        read_sources(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_sources(tmp_path / "bad.json")
    with pytest.raises(UserError, match="cannot read"):
        read_sources(tmp_path / "none.txt")
