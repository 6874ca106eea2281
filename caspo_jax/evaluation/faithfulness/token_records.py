"""Tokens with their log-probs, as vLLM and completion servers write them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from caspo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RecordedToken:
    """A token as a server reported it."""

    id: int | None  # None: only its bytes are known
    data: bytes
    logprob: float | None  # temperature-1 log-prob, nats
    top: tuple[float, ...] = ()  # log-probs of the most probable tokens, descending


def vllm_tokens(output: Mapping[str, Any]) -> tuple[RecordedToken, ...]:
    """Tokens of a vLLM output's `token_ids` and `logprobs`.

    Raises:
      UserError: another number of log-probs than of tokens, or log-probs that lack the token's own.
    """
    token_ids = output.get("token_ids") or []
    logprobs = output.get("logprobs") or [None] * len(token_ids)
    if len(logprobs) != len(token_ids):
        raise UserError(f"{len(logprobs)} logprobs for {len(token_ids)} token_ids")
    return tuple(_vllm_token(int(i), entry) for i, entry in zip(token_ids, logprobs))


def _vllm_token(token: int, entry: Mapping[str, Any] | None) -> RecordedToken:
    """`entry`: token id -> {logprob, rank, decoded_token}, the emitted token among them, or id -> number."""
    if not entry:
        return RecordedToken(token, b"", None)
    values = {
        int(key): float(value["logprob"] if isinstance(value, Mapping) else value)
        for key, value in entry.items()
    }
    if token not in values:
        raise UserError(f"the log-probs of token {token} do not hold its own")
    ranks = {int(k): v.get("rank") for k, v in entry.items() if isinstance(v, Mapping)}
    # The emitted token is listed even where it is none of the n most probable: it must not count as one.
    extra = (ranks.get(token) or 0) > len(values) and len(values) > 1
    top = sorted((v for k, v in values.items() if not (extra and k == token)), reverse=True)
    return RecordedToken(token, b"", values[token], tuple(top))


def choice_tokens(logprobs: Mapping[str, Any] | None) -> tuple[RecordedToken, ...]:
    """Tokens of the `logprobs` of a chat completion's choice (`content`) or of a completion's (`tokens`); () for none.

    Raises:
      UserError: `bytes` that are no list, lists of different lengths.
    """
    if not logprobs:
        return ()
    if logprobs.get("content"):
        return tuple(
            _server_token(
                item["token"],
                item.get("bytes"),
                item.get("logprob"),
                [t["logprob"] for t in item.get("top_logprobs") or ()],
            )
            for item in logprobs["content"]
        )
    names = logprobs.get("tokens") or ()
    values = logprobs.get("token_logprobs") or [None] * len(names)
    tops = logprobs.get("top_logprobs") or [None] * len(names)
    if names and not len(names) == len(values) == len(tops):
        raise UserError(f"{len(values)} token_logprobs and {len(tops)} top_logprobs for {len(names)} tokens")
    return tuple(
        _server_token(name, None, value, list((top or {}).values()))
        for name, value, top in zip(names, values, tops)
    )


def _server_token(name: str, data: Any, logprob: Any, top: list[float]) -> RecordedToken:
    found = tuple(sorted((float(v) for v in top), reverse=True))
    own = None if logprob is None else float(logprob)
    if name.startswith("token_id:"):
        return RecordedToken(int(name.removeprefix("token_id:")), b"", own, found)
    if data is not None and not isinstance(data, list):
        raise UserError(f"`bytes` of token {name!r} must be a list of integers, found {data!r:.40}")
    spelled = bytes(data) if data is not None else name.encode("utf-8", "surrogatepass")
    return RecordedToken(None, spelled, own, found)
