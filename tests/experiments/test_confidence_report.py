"""`evaluate --traces` on traces of which no table can be made: one line says why."""

import pytest

from caspo_jax.models import load_tokenizer, token_bytes
from caspo_jax.records import trace_to_record
from caspo_jax.steps.segmentation import segment
from caspo_jax.tasks import get_task
from caspo_jax.types import Trace

TASK = get_task("graph")


@pytest.mark.parametrize(
    "prompt_ids, message",
    [((), "has both `prompt_ids` and `token_ids`"), ((2, 34, 3), "has a verdict: annotate the traces first")],
)
def test_traces_without_ids_or_verdicts(program, write, tmp_path, prompt_ids, message):
    text = "a: 5\n\nanswer: 5"
    tokenizer = load_tokenizer(TASK.policy_path)
    ids = tuple(tokenizer(text)["input_ids"])
    _, steps, _ = segment(ids, token_bytes(tokenizer, len(tokenizer)))
    trace = Trace(
        id="q/0",
        question=None,
        gold=None,
        prompt=None,
        prompt_ids=prompt_ids,
        token_ids=ids,
        text=text,
        finish_reason="stop",
        steps=steps,
    )
    traces = write("t.jsonl", [trace_to_record(trace)])
    code, _, err = program("evaluate", model=TASK.policy_path, traces=traces, out_dir=tmp_path / "o")
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert not list((tmp_path / "o").glob("*"))  # annotated ones may go there
