"""Token ids for pairs that have texts only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.models import encode_prompt
from caspo_jax.models.tokenizer import opened_once, thought_opening
from caspo_jax.types import CLOSE_THOUGHT, Pair, Question


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: Any, *, eos_id: int | None = None, delimiter: str = ""
) -> list[Pair]:
    """Token ids for pairs that have texts only; pairs with ids stay as they are.

    Prompt (a question, through the chat template if there is one), prefix and steps are encoded apart, so both
    sides share the context exactly; a `<think>` that both bring is not opened by the template too. EOS is put after a
    side that ends its trace, `delimiter` after the others that lack it.

    Raises:
      UserError: a side that ends its trace, and no EOS id; a side without tokens.
    """
    return list(map(pair_tokenizer(pairs, tokenizer, eos_id=eos_id, delimiter=delimiter), pairs))


def pair_tokenizer(
    pairs: Sequence[Pair], tokenizer: Any, *, eos_id: int | None = None, delimiter: str = ""
) -> Callable[[Pair], Pair]:
    """What does to any of these pairs what `tokenize_pairs` does to all; their texts are encoded now, on all cores."""
    bare = [pair for pair in pairs if not pair.chosen_ids]
    if not bare:  # of a policy that may have no tokenizer
        return lambda pair: pair
    end = tokenizer.eos_token_id if eos_id is None else eos_id
    texts = {text: None for pair in bare for text in (pair.prefix, *_sides(pair, delimiter)) if text}
    known = dict(zip(texts, tokenizer(list(texts), add_special_tokens=False)["input_ids"])) if texts else {}
    encoded = {"": ()} | {text: tuple(ids) for text, ids in known.items()}
    return lambda pair: pair if pair.chosen_ids else _tokenized(pair, tokenizer, encoded, end, delimiter)


def _sides(pair: Pair, delimiter: str) -> list[str]:
    """The texts of both sides, with the delimiter where the output goes on behind them."""
    sides = zip((pair.chosen, pair.rejected), pair.ends_trace, strict=True)
    return [text if ends or text.endswith(delimiter) else text + delimiter for text, ends in sides]


def _tokenized(
    pair: Pair,
    tokenizer: Any,
    encoded: Mapping[str, tuple[int, ...]],
    eos_id: int | None,
    delimiter: str,
) -> Pair:
    def side(text: str, ends: bool) -> tuple[int, ...]:
        ids = encoded[text]
        if not ids:
            raise UserError(f"pair {pair.id!r}: a side encodes to no token")
        if ends and eos_id is None:
            raise UserError(f"pair {pair.id!r} ends its trace and the tokenizer has no EOS: give eos_id=")
        if ends and eos_id is not None and ids[-1] != eos_id:  # some files spell it
            ids = (*ids, eos_id)
        return ids

    prompt_ids = encode_prompt(tokenizer, _prompt_question(pair, tokenizer))
    begun = [pair.prefix] if pair.prefix else [pair.chosen, pair.rejected]
    chosen, rejected = map(side, _sides(pair, delimiter), pair.ends_trace)
    return dataclasses.replace(
        pair,
        prompt_ids=tuple(opened_once(tokenizer, prompt_ids, *begun)),
        prefix_ids=encoded[pair.prefix],
        chosen_ids=chosen,
        rejected_ids=rejected,
    )


def thinks_on(pair: Pair, tokenizer: Any) -> bool:
    """Whether a pair with token ids prefers an answer that ends inside the thought which its prompt opens."""
    closed = CLOSE_THOUGHT in pair.prefix + pair.chosen
    return pair.ends_trace[0] and not closed and thought_opening(tokenizer, list(pair.prompt_ids)) is not None


def _prompt_question(pair: Pair, tokenizer: Any) -> Question:
    """What is not rendered yet is a question."""
    if is_rendered(pair.prompt, tokenizer):
        return Question(id=pair.id, prompt=pair.prompt)
    return Question(id=pair.id, question=pair.prompt)


def is_rendered(prompt: str, tokenizer: Any) -> bool:
    """Whether a prompt holds special tokens, as those have that went through a chat template."""
    return any(token and token in prompt for token in tokenizer.all_special_tokens)
