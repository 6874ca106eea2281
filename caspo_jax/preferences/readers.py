"""Pairs from and to the files of others: Step-DPO-10K and TRL preference data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.models import render_chat
from caspo_jax.models.tokenizer import whole_text
from caspo_jax.preferences.identity import stable_hash
from caspo_jax.preferences.left_out import LEFT_OUT, NoContrastError, say_left_out
from caspo_jax.preferences.pair_tokens import is_rendered
from caspo_jax.records import schema
from caspo_jax.store import parse_at, read_jsonl
from caspo_jax.types import Pair, Verdict

Messages = Sequence[Mapping[str, Any]]
_AT_ONCE = 512  # pairs whose texts the tokenizer reads together, on all cores


class UnclosedThoughtWarning(UserWarning):
    """The chat template opens a thought that whole answers of a file never close; they are used as they are."""


def _text_pair(
    prompt: str,
    prefix: str,
    chosen: str,
    rejected: str,
    ends: tuple[bool, bool],
    verdicts: tuple[Verdict, Verdict],
    id: str | None,
) -> Pair:
    if chosen.strip() == rejected.strip():
        raise NoContrastError("`chosen` and `rejected` are the same text")
    if not chosen.strip() or not rejected.strip():
        raise NoContrastError(f"`{'rejected' if chosen.strip() else 'chosen'}` is empty")
    for name, text in (("the prefix", prefix), ("`chosen`", chosen), ("`rejected`", rejected)):
        whole_text(text, name)
    return Pair(
        id=id or stable_hash("wrong", prompt, prefix, chosen, rejected),
        kind="wrong",
        prompt=prompt,
        prefix=prefix,
        chosen=chosen,
        rejected=rejected,
        prompt_ids=(),
        prefix_ids=(),
        chosen_ids=(),
        rejected_ids=(),
        ends_trace=ends,
        chosen_verdict=verdicts[0],
        rejected_verdict=verdicts[1],
    )


def step_dpo_from_record(record: Mapping[str, Any]) -> Pair:
    """A line of Step-DPO-10K (arXiv 2406.18629): `prompt, initial_reason_steps, chosen, rejected`.

    Steps do not end the trace; the verdicts are the data set's (chosen correct, rejected wrong).
    """
    texts = [record.get(field) for field in ("prompt", "initial_reason_steps", "chosen", "rejected")]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(
            "a Step-DPO record needs `prompt`, `initial_reason_steps`, `chosen`, `rejected` strings"
        )
    prompt, prefix, chosen, rejected = (str(text) for text in texts)
    name = record.get("id")
    return _text_pair(
        prompt,
        prefix,
        chosen,
        rejected,
        (False, False),
        ("correct", "wrong"),
        None if name is None else str(name),
    )


def trl_from_record(record: Mapping[str, Any], tokenizer: Any = None) -> Pair:
    """A TRL preference record: `chosen, rejected` and `prompt` or none, as text or as lists of messages.

    Without a prompt, or with a string beside messages, which then hold it too (UltraFeedback), it is what both have in
    common at the start (whole messages, or characters back to a white space). Answers are whole, so both
    end their trace, unless `ends_trace`, which `to_trl_record` writes, says otherwise. Messages are rendered by the tokenizer's chat
    template; without one a single user message stands for itself.
    """
    missing = [field for field in ("chosen", "rejected") if field not in record]
    if missing:
        raise UserError(f"a TRL preference record needs `{missing[0]}`")
    prompt, chosen, rejected = record.get("prompt"), record["chosen"], record["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str) and isinstance(prompt, str | None):
        if prompt is None:
            prompt = _common_text(chosen, rejected)
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    elif all(_is_messages(part) for part in (chosen, rejected)) and (
        isinstance(prompt, str | None) or _is_messages(prompt)
    ):
        if chosen and chosen == rejected:
            raise NoContrastError("`chosen` and `rejected` are the same messages")
        if prompt is None or isinstance(prompt, str):
            shared = _shared(chosen, rejected)
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        prompt = _render(prompt, tokenizer)
        chosen, rejected = _answer(chosen, "chosen"), _answer(rejected, "rejected")
    else:
        raise UserError("`prompt`, `chosen`, `rejected` must be all strings or all lists of messages")
    prefix = record.get("prefix")
    if not isinstance(prefix, str) or not prompt.endswith(prefix):
        prefix = ""  # somebody else's field of that name
    ends = record.get("ends_trace", [True, True])
    if not (isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, bool) for end in ends)):
        raise UserError("`ends_trace` must be two booleans: does `chosen`, does `rejected` end its output?")
    name = record.get("id")
    return _text_pair(
        prompt.removesuffix(prefix),
        prefix,
        chosen,
        rejected,
        (ends[0], ends[1]),
        ("unknown", "unknown"),
        None if name is None else str(name),
    )


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    )


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _common_text(a: str, b: str) -> str:
    common = a[: _shared(a, b)]
    while common and not common[-1].isspace():
        common = common[:-1]
    return common


def _render(messages: Messages, tokenizer: Any) -> str:
    if tokenizer is not None and getattr(tokenizer, "chat_template", None):
        return render_chat(tokenizer, messages, "`prompt`")
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    raise UserError("a prompt of several messages needs a tokenizer with a chat template")


def _answer(messages: Messages, side: str) -> str:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise UserError(f"`{side}` must end in exactly one assistant message that the other lacks")
    return messages[0]["content"]


def read_step_dpo(path: str | Path) -> list[Pair]:
    """Step-DPO-10K as JSONL, read as by `load_pairs`."""
    return load_pairs(path, step_dpo_from_record)[0]


def read_trl(path: str | Path, tokenizer: Any = None) -> list[Pair]:
    """TRL preference data as JSONL, read as by `load_pairs`."""
    return load_pairs(path, lambda record: trl_from_record(record, tokenizer))[0]


def load_pairs(
    path: str | Path,
    parse: Callable[[dict[str, Any]], Pair],
    *,
    complete: Callable[[Sequence[Pair]], Callable[[Pair], Pair]] | None = None,
    required: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Pair], int]:
    """The pairs of a JSONL file; those that cannot be used are left out, each kind with a warning that names the first.

    Args:
      path: the file.
      parse: record -> pair; raises `NoContrastError` or `TooLongError` for one to leave out.
      complete: some hundred parsed pairs -> what makes one of them whole, which may raise the same: for work that is
        faster done for many at once (`pair_tokens.pair_tokenizer`).
      required: whether a file none of whose pairs can be used is an error.
      progress: called with how many pairs were read.

    Returns:
      The pairs, and how many were left out.

    Raises:
      UserError: naming file:line; none of the pairs can be used.
    """
    pairs: list[Pair] = []
    left_out: list[UserError] = []
    lines = read_jsonl(path)
    while some := list(itertools.islice(lines, _AT_ONCE)):
        parsed = [(where, _unless_left_out(where, parse, record)) for where, record in some]
        if complete is not None:
            finish = complete([pair for _, pair in parsed if isinstance(pair, Pair)])
            parsed = [
                (where, _unless_left_out(where, finish, pair) if isinstance(pair, Pair) else pair)
                for where, pair in parsed
            ]
        for _, found in parsed:
            if isinstance(found, Pair):
                pairs.append(found)
            else:
                left_out.append(found)
        if progress is not None:
            progress(len(pairs) + len(left_out))
    say_left_out(path, "pairs", left_out, len(pairs) + len(left_out), required=required)
    return pairs, len(left_out)


def _unless_left_out(where: str, make: Callable[[Any], Pair], source: Any) -> Pair | UserError:
    """What is made of it, or why that is left out."""
    try:
        return parse_at(where, make, source)
    except tuple(LEFT_OUT) as error:
        return error


def to_trl_record(pair: Pair, *, conversational: bool = False, tokenizer: Any = None) -> dict[str, Any]:
    """A pair as TRL takes it: the prefix belongs to the prompt.

    TRL applies no chat template to a prompt that is text. With the `tokenizer` of the policy, a question that was asked
    through one is therefore written as it was asked.

    TRL ignores `schema`, `id`, `prefix` and `ends_trace`; `trl_from_record` reads the latter three back.

    A pair with a prefix cannot be conversational: an answer that was begun is no message.
    """
    own = {"schema": schema("trl_pair"), "id": pair.id, "ends_trace": list(pair.ends_trace)}
    if not conversational:
        return {
            "prompt": _asked(pair, tokenizer) + pair.prefix,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "prefix": pair.prefix,
            **own,
        }
    if pair.prefix:
        raise UserError(
            f"pair {pair.id!r} has a prefix: write it in the standard format, conversational=False"
        )
    return {
        "prompt": [{"role": "user", "content": pair.prompt}],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        **own,
    }


def _asked(pair: Pair, tokenizer: Any) -> str:
    """The prompt through the chat template, where that marks turns by special tokens: what is read back as rendered."""
    if not pair.prompt_ids or not getattr(tokenizer, "chat_template", None):
        return pair.prompt
    rendered = tokenizer.decode(list(pair.prompt_ids), clean_up_tokenization_spaces=False)
    return rendered if is_rendered(rendered, tokenizer) else pair.prompt


def to_step_dpo_record(pair: Pair) -> dict[str, Any]:
    """A pair with Step-DPO-10K's fields."""
    return {
        "prompt": pair.prompt,
        "initial_reason_steps": pair.prefix,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }
