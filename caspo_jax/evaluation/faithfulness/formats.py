"""One record of a file, ours or another tool's, to the outputs in it: a reader for each format, tried in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness.messages import (
    Messages,
    message_text,
    messages_in,
    plain_messages,
    reasoning_of,
)
from caspo_jax.evaluation.faithfulness.token_records import RecordedToken, choice_tokens, vllm_tokens
from caspo_jax.records import trace_from_record
from caspo_jax.types import FinishReason, Trace

Record = Mapping[str, Any]

_TEXT_FIELDS = (
    "text",
    "generated_text",
    "output",
    "response",
    "completion",
    "generation",
    "trace",
    "reasoning",
)
# Of a batch, `id` is the server's own number.
_ID_FIELDS = ("custom_id", "id", "request_id", "unique_id", "idx")


@dataclasses.dataclass(frozen=True)
class Source:
    """One model output as it was found. Its prompt is one of prompt ids, prompt text, messages, question; or none."""

    id: str
    text: str
    format: str
    trace: Trace | None = None  # our own record, token ids included
    question: str | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    messages: Messages | None = None
    tokens: tuple[RecordedToken, ...] = ()
    gold: str | None = None
    correct: bool | None = None
    group: str | None = None  # question id, if the record names one
    finish_reason: FinishReason = "eos"


def read_record(record: Record, default_id: str) -> list[Source]:
    """The outputs of a record, by the first format whose fields it has. Raises UserError if there is none."""
    for applies, read in _FORMATS:
        if applies(record):
            return read(record, default_id)
    raise UserError(
        "a trace of no known kind: give `token_ids` and `text`, vLLM `outputs`, `choices`, lm-eval `resps`, an inspect "
        f"sample, or one of {', '.join(f'`{f}`' for f in _TEXT_FIELDS)}"
    )


def _ours(record: Record, default_id: str) -> list[Source]:
    trace = trace_from_record({"id": default_id, **record})
    return [
        Source(
            id=trace.id,
            text=trace.text,
            format="caspo_jax",
            trace=trace,
            question=trace.question,
            prompt=trace.prompt,
            prompt_ids=trace.prompt_ids or None,
            gold=trace.gold,
            correct=trace.correct,
            group=_string(record.get("question_id", record.get("group"))),
            finish_reason=trace.finish_reason,
        )
    ]


def _vllm(record: Record, default_id: str) -> list[Source]:
    common = _common(record, default_id, "vllm")
    ids = record.get("prompt_token_ids")
    if ids is not None:
        common["prompt_ids"] = tuple(int(i) for i in ids)
    sources = []
    for index, output in enumerate(record["outputs"]):
        try:
            tokens = vllm_tokens(output)
        except UserError as error:
            raise UserError(f"outputs[{index}]: {error}") from error
        text = output.get("text")
        if not isinstance(text, str):
            raise UserError(f"outputs[{index}] has no `text`")
        finish = _finish(output.get("finish_reason"))
        sources.append(
            _one(common, index, len(record["outputs"]), text=text, tokens=tokens, finish_reason=finish)
        )
    return sources


def _choices(record: Record, default_id: str) -> list[Source]:
    body = record
    if "response" in record:  # one line of a batch's results
        body = (record["response"] or {}).get("body") or {}
    request = record.get("request") or record.get("body") or {}
    common = _common(
        {**request, **{k: v for k, v in record.items() if k != "response"}}, default_id, "completions"
    )
    sources = []
    for index, choice in enumerate(body["choices"]):
        message = choice.get("message")
        text = choice.get("text") if message is None else message_text(message)
        if not isinstance(text, str):
            raise UserError(f"choices[{index}] has neither `text` nor a `message` with text")
        tokens = (
            () if message is not None and reasoning_of(message) else choice_tokens(choice.get("logprobs"))
        )
        finish = _finish(choice.get("finish_reason"))
        sources.append(
            _one(common, index, len(body["choices"]), text=text, tokens=tokens, finish_reason=finish)
        )
    return sources


def _lm_eval(record: Record, default_id: str) -> list[Source]:
    resps = record["resps"]
    texts = [item for group in resps for item in (group if isinstance(group, list) else [group])]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError("`resps` holds no generated text: only samples of generation tasks are traces")
    identity = record.get("doc_id", record.get("id", default_id))
    common = _common({**record, "id": identity}, default_id, "lm-eval")
    prompt = _lm_eval_prompt(record.get("arguments"))
    common["messages"] = None if prompt is None else messages_in(prompt)
    common["prompt"], common["question"] = (None if common["messages"] else prompt), None
    # The prompt holds the chat template of the model that was asked; the document is the same for all.
    common["group"] = common["group"] or _string(record.get("doc_hash"))
    target = record.get("target")
    common["gold"] = None if isinstance(target, (list, dict)) else _string(target)
    score = next(
        (record[k] for k in ("exact_match", "acc", "correct") if isinstance(record.get(k), (int, float))),
        None,
    )
    common["correct"] = None if score is None else bool(score == 1)
    return [_one(common, i, len(texts), text=text) for i, text in enumerate(texts)]


def _lm_eval_prompt(arguments: Any) -> str | None:
    """The first request's text; a chat that was sent to a server is JSON in a list of its own."""
    if isinstance(arguments, Mapping):
        arguments = next(iter(arguments.values()), None)
        first = arguments.get("arg_0") if isinstance(arguments, Mapping) else None
    else:
        first = arguments[0] if isinstance(arguments, list) and arguments else None
        first = first[0] if isinstance(first, list) and first else None
    return _string(first[0] if isinstance(first, list) and len(first) == 1 else first)


def _inspect(record: Record, default_id: str) -> list[Source]:
    identity = _string(record.get("id", default_id)) or default_id
    epoch = record.get("epoch")
    common = _common(
        {"id": identity if epoch in (None, 1) else f"{identity}/epoch{epoch}"}, default_id, "inspect"
    )
    common["group"] = identity
    asked = record.get("input")
    if isinstance(asked, list):
        common["messages"] = plain_messages(asked)
    else:
        common["question"] = _string(asked)
    target = record.get("target")
    common["gold"] = _string(target[0] if isinstance(target, list) and len(target) == 1 else target)
    verdicts = {"C": True, "I": False, 1: True, 0: False}
    scores = [s.get("value") for s in (record.get("scores") or {}).values() if isinstance(s, Mapping)]
    known = [verdicts[v] for v in scores if isinstance(v, (str, int, float)) and v in verdicts]
    common["correct"] = known[0] if known else None
    # A sample that failed has no choice: an output without a word, which the counts of a report show.
    choices = record["output"]["choices"] or [{"message": {}}]
    sources = []
    for index, choice in enumerate(choices):
        message = choice["message"]
        tokens = () if reasoning_of(message) else choice_tokens(choice.get("logprobs"))
        finish = _finish(choice.get("stop_reason"))
        sources.append(
            _one(common, index, len(choices), text=message_text(message), tokens=tokens, finish_reason=finish)
        )
    return sources


def _generic(record: Record, default_id: str) -> list[Source]:
    common = _common(record, default_id, "text")
    field = next(f for f in _TEXT_FIELDS if isinstance(record.get(f), str))
    common["correct"] = record["correct"] if isinstance(record.get("correct"), bool) else None
    return [_one(common, 0, 1, text=record[field], finish_reason=_finish(record.get("finish_reason")))]


def _common(record: Record, default_id: str, name: str) -> dict[str, Any]:
    """What records of all kinds may say about the question."""
    identity = _first(record, _ID_FIELDS)
    messages = record.get("messages")
    prompt_ids = record.get("prompt_ids")
    gold = _first(record, ("gold", "answer", "target"))
    return {
        "id": str(default_id if identity is None else identity),
        "format": name,
        "question": next(
            (v for k in ("question", "problem", "instruction") if (v := _string(record.get(k)))), None
        ),
        "prompt": record["prompt"] if isinstance(record.get("prompt"), str) else None,
        "prompt_ids": tuple(int(i) for i in prompt_ids) if isinstance(prompt_ids, list) else None,
        "messages": plain_messages(messages) if isinstance(messages, list) else None,
        "gold": None if isinstance(gold, (list, dict)) else _string(gold),
        "group": _string(record.get("question_id")),
    }


def _one(common: dict[str, Any], index: int, count: int, **fields: Any) -> Source:
    """An output of a record that holds `count`; where nothing says what was asked, the record's id keeps them together."""
    identity = common["id"] if count == 1 else f"{common['id']}/{index}"
    asked = any(common[field] for field in ("question", "prompt", "prompt_ids", "messages"))
    group = common["group"] or (None if asked or count == 1 else common["id"])
    return Source(**(common | {"id": identity, "group": group} | fields))


def _finish(reason: Any) -> FinishReason:
    return "length" if reason in ("length", "max_tokens", "model_length") else "eos"


def _first(record: Record, fields: Sequence[str]) -> Any:
    """The first of these fields that the record has, None without any."""
    return next((record[field] for field in fields if record.get(field) is not None), None)


def _string(value: Any) -> str | None:
    return None if value is None or isinstance(value, (list, dict)) else str(value)


def _is_vllm(record: Record) -> bool:
    outputs = record.get("outputs")
    return isinstance(outputs, list) and bool(outputs) and all(isinstance(o, Mapping) for o in outputs)


def _is_inspect(record: Record) -> bool:
    output = record.get("output")
    return isinstance(output, Mapping) and isinstance(output.get("choices"), list)


def _has_choices(record: Record) -> bool:
    if isinstance(record.get("choices"), list) and record["choices"]:
        return all(isinstance(c, Mapping) for c in record["choices"])
    body = record["response"].get("body") if isinstance(record.get("response"), Mapping) else None
    return isinstance(body, Mapping) and isinstance(body.get("choices"), list) and bool(body["choices"])


_FORMATS: tuple[tuple[Callable[[Record], bool], Callable[[Record, str], list[Source]]], ...] = (
    (lambda r: isinstance(r.get("token_ids"), list) and isinstance(r.get("text"), str), _ours),
    (_is_vllm, _vllm),
    (_is_inspect, _inspect),
    (_has_choices, _choices),
    (lambda r: isinstance(r.get("resps"), list), _lm_eval),
    (lambda r: any(isinstance(r.get(f), str) for f in _TEXT_FIELDS), _generic),
)
