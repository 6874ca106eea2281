"""What a stage's policy reads."""

from __future__ import annotations

import dataclasses

import pytest

from caspo_jax.errors import UserError
from caspo_jax.records import trace_to_record
from caspo_jax.store import write_jsonl
from caspo_jax.tasks import get_task
from caspo_jax.training.stages import Policy
from caspo_jax.types import Trace


def test_traces_of_another_tokenizer_are_refused(tmp_path):
    policy = Policy.without_weights(get_task("graph").policy_path)
    text = "b = 5\n\nanswer: 5"
    ids = tuple(policy.tokenizer.encode(text, add_special_tokens=False))
    trace = Trace(
        id="q/0",
        question="q",
        gold=None,
        prompt="q",
        prompt_ids=(1,),
        token_ids=ids,
        text=text,
        finish_reason="eos",
    )

    def read(**changes):
        path = tmp_path / "traces.jsonl"
        write_jsonl(
            path, [trace_to_record(trace), trace_to_record(dataclasses.replace(trace, id="q/1", **changes))]
        )
        return policy.read_traces(path)

    assert len(read()) == 2
    stop = policy.tokenizer.eos_token
    for alike in (text + stop, f"{stop}{text} ", text[:-1], text + "\n\nEND", "b = 5\ufffd", "b = \ud83d"):
        assert len(read(text=alike)) == 2
    for changes in ({"text": "b = 6\n\nanswer: 5"}, {"token_ids": ids[1:]}):
        with pytest.raises(
            UserError, match=r"traces.jsonl:2: the token_ids of trace 'q/1' spell .* tokenizer"
        ):
            read(**changes)
