"""Records of other tools to outputs, and outputs to traces with token ids."""

import dataclasses
import json

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
from caspo_jax.records import trace_to_record
from caspo_jax.types import Step, Trace
from tests.evaluation.faithfulness.conftest import QUESTION, TASK, TEXT


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


def test_a_text_file_of_windows_begins_with_its_first_word(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\ntwo".encode())
    (source,) = read_sources(tmp_path / "a.txt")
    assert source.text == "one\n\ntwo"


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
    yarn = dataclasses.replace(
        config, rope=RopeConfig("yarn", factor=1000.0, original_max_position_embeddings=config.context)
    )
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
        ({"custom_id": 1, "response": {"body": {"choices": []}}}, "in.jsonl:1: a trace of no known kind"),
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


def test_a_prompt_of_another_vocabulary_names_its_trace(file, tokenizer, config):
    record = {"id": "a", "prompt_ids": [99_999], "token_ids": [3], "text": "x"}
    with pytest.raises(UserError, match=r"trace 'a': token_ids\[0\] = 99999 is outside the vocabulary"):
        prepare(read_sources(file(record)), tokenizer, config)


def test_vllm_texts_without_the_rest(file):
    (source,) = read_sources(file({"prompt": "1 + 1?", "generated_text": "2"}))
    assert (source.prompt, source.text) == ("1 + 1?", "2")


def test_bad_files(tmp_path, file):
    with pytest.raises(UserError, match=r"was used before, at .*give every output an `id` of its own"):
        read_sources(file({"unique_id": "a", "text": "x"}, {"unique_id": "a", "text": "y"}))
    with pytest.raises(UserError, match="no traces in it"):
        read_sources(file())
    with pytest.raises(UserError, match=r"no \.txt files"):
        read_sources(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_sources(tmp_path / "bad.json")
    with pytest.raises(UserError, match="cannot read"):
        read_sources(tmp_path / "none.txt")
