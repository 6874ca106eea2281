"""Outputs of servers to traces: vLLM's and completions, whose tokens and log-probs stay their own."""

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import prepare, read_sources
from caspo_jax.models import load_tokenizer
from tests.evaluation.faithfulness.conftest import QUESTION, TASK, TEXT


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


def test_a_completion_with_fewer_logprobs_than_tokens_is_no_shorter_one(file):
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-1.0], "top_logprobs": None}
    with pytest.raises(UserError, match=r"in\.jsonl:1: 1 token_logprobs and 2 top_logprobs for 2 tokens"):
        read_sources(file({"id": "c", "choices": [{"text": "ab", "logprobs": logprobs}]}))
    (source,) = read_sources(
        file({"id": "c", "choices": [{"text": "ab", "logprobs": logprobs | {"token_logprobs": None}}]})
    )
    assert [(token.data, token.logprob) for token in source.tokens] == [(b"a", None), (b"b", None)]


@pytest.mark.parametrize(
    ("field", "value", "error"), [("logprob", "x", "could not convert"), ("bytes", 10**9, "must be a list")]
)
def test_a_malformed_token_is_named_with_its_line(file, field, value, error):
    """At the line, not later; and a number of bytes is no bytes: `bytes(n)` would be n zeros."""
    token = {"token": "a", "bytes": [97], "logprob": -1.0, "top_logprobs": []} | {field: value}
    record = {"id": "c", "choices": [{"message": {"content": "a"}, "logprobs": {"content": [token]}}]}
    with pytest.raises(UserError, match=rf"in\.jsonl:1: .*{error}"):
        read_sources(file(record))


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


def test_a_thought_is_opened_by_the_template_or_by_the_text(file, config):
    """A server puts the tag back that the template had opened: the model never saw two."""
    thinker = load_tokenizer(TASK.policy_path)
    thinker.chat_template = "{{ messages[0].content + '\\n<think>\\n' }}"
    choices = [
        {"message": {"content": "82", "reasoning_content": TEXT}},
        {"message": {"content": f"{TEXT}\n</think>\n\n82"}},
    ]
    found = prepare(
        read_sources(file({"id": "a", "question": QUESTION, "choices": choices})), thinker, config
    )
    read = [thinker.decode(s.trace.prompt_ids + s.trace.token_ids) for s in found]
    assert read == [f"{QUESTION}\n<think>\n{TEXT}\n</think>\n\n82"] * 2
    assert [[step.text for step in s.trace.steps] for s in found] == [TEXT.split("\n\n")] * 2
