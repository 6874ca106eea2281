"""Tokenizers: exact bytes of every token, prompts to ids, ids to text."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError, first_line
from caspo_jax.models.config import ModelConfig, merge_eos
from caspo_jax.store import read_json, write_json
from caspo_jax.types import CLOSE_THOUGHT, OPEN_THOUGHT, Question

Tokenizer = Any  # a transformers fast tokenizer

_CONFIG = "tokenizer_config.json"
# Keys of tokenizer_config.json that transformers 5 would change or leave out when it saves.
_KEPT = ("tokenizer_class", "add_bos_token", "add_eos_token")
_LONGEST_TAG = 16  # tokens that `<think>` and the white space around it take at most
_FILES = ("tokenizer.json", _CONFIG, "vocab.json", "tokenizer.model")


def find_tokenizer(path: str | Path) -> bool:
    """Whether a folder holds tokenizer files of any kind."""
    return any((Path(path) / name).is_file() for name in _FILES)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads the fast tokenizer of a checkpoint folder.

    Raises:
      UserError: the folder holds no tokenizer, one that cannot be parsed, or one with no fast implementation.
    """
    if not find_tokenizer(path):
        raise UserError(f"{path}: holds no tokenizer (expected tokenizer.json)")
    # transformers announces on import that torch is absent, which is how this library is meant to run.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # takes seconds to import

    # AutoTokenizer may rebuild the pre-tokenizer from the architecture's own class; tokenizer.json is what the
    # checkpoint was trained with.
    verbatim = (Path(path) / "tokenizer.json").is_file()
    try:
        kind = PreTrainedTokenizerFast if verbatim else AutoTokenizer
        # Passed explicitly: otherwise transformers would ask at the terminal whether to run the tokenizer's
        # own code.
        tokenizer = kind.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(f"{path}: the tokenizer cannot be loaded ({first_line(error)})") from error
    if not tokenizer.is_fast:
        raise UserError(f"{path}: only fast tokenizers are supported (tokenizer.json)")
    config = Path(path) / _CONFIG
    source = read_json(config) if config.is_file() else {}
    tokenizer.source_config = {key: source[key] for key in _KEPT if source.get(key) is not None}
    _heed_add_bos(tokenizer)
    return tokenizer


def _heed_add_bos(tokenizer: Tokenizer) -> None:
    """Makes a tokenizer add the BOS that its config asks for.

    transformers 5 relies on tokenizer.json for that, which in some checkpoints (DeepSeek-R1-Distill's) does
    not add it; transformers 4 made up for it.
    """
    asked = tokenizer.source_config.get("add_bos_token") is True and tokenizer.bos_token_id is not None
    if asked and tokenizer.encode("a")[:1] != [tokenizer.bos_token_id]:
        tokenizer.add_bos_token = True


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokenizer's files and chat template, in words that transformers 4 and 5 read.

    The class that its config names, and whether BOS and EOS are added, stay what they were.
    """
    tokenizer.save_pretrained(str(folder))
    config = read_json(folder / _CONFIG)
    config |= getattr(tokenizer, "source_config", {})
    if isinstance(config.get("extra_special_tokens"), list):  # on which transformers 4 fails
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for key in ("is_local", "local_files_only"):  # how this process loaded it, nothing about the tokenizer
        config.pop(key, None)
    write_json(folder / _CONFIG, config)


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, the others from U+0100 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    table = {chr(byte): byte for byte in printable}
    for offset, byte in enumerate(byte for byte in range(256) if byte not in printable):
        table[chr(256 + offset)] = byte
    return table


def token_bytes(tokenizer: Tokenizer | None, vocab_size: int) -> list[bytes]:
    """The exact bytes that each token id adds to the text.

    `b"".join(bytes of ids).decode("utf-8", "replace")` is `decode(tokenizer, ids)`. Special tokens, which
    decoding leaves out, and ids that no token has (a padded vocabulary) are empty. Added tokens that are not special
    (Qwen3's `<think>`) are text and have bytes.

    Args:
      tokenizer: a fast tokenizer with a byte-level decoder (or one that joins tokens as they are); None, as for a
        checkpoint without tokenizer, gives no token any bytes.
      vocab_size: V of the model, which may exceed the tokenizer's.

    Raises:
      UserError: a decoder whose text is no concatenation of token bytes (e.g. sentencepiece's).
    """
    if tokenizer is None:
        return [b""] * vocab_size
    backend = tokenizer.backend_tokenizer
    decoder = (json.loads(backend.to_str()).get("decoder") or {}).get("type")
    if decoder not in ("ByteLevel", "Fuse"):
        raise UserError(
            f"tokenizer decoder {decoder!r} is not supported (only byte-level BPE: 'ByteLevel', or 'Fuse')"
        )
    alphabet = _byte_of_character() if decoder == "ByteLevel" else {}
    special = _special_ids(tokenizer)
    result = [b""] * vocab_size
    for text, id in backend.get_vocab(with_added_tokens=True).items():
        if id >= vocab_size or id in special:
            continue
        if all(character in alphabet for character in text):
            result[id] = bytes(alphabet[character] for character in text)
        else:
            result[id] = text.encode("utf-8")
    return result


def _special_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids that spell nothing: special in tokenizer.json, or named (eos, pad, ...) in tokenizer_config.json alone."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {id for id, token in added.items() if token.special} | set(tokenizer.all_special_ids)


def encode_prompt(tokenizer: Tokenizer | None, question: Question) -> list[int]:
    """Token ids of a question's prompt.

    `prompt_ids` are used verbatim. `prompt` is encoded as it stands, with the tokenizer's own BOS unless the text
    already starts with it, and without the EOS that some tokenizers append. `question` goes through the chat template
    with a generation prompt, or is encoded as `prompt` where there is no template.

    Raises:
      UserError: the question has none of the three, encodes to nothing or holds a lone surrogate, or the chat template
        fails.
    """
    if question.prompt_ids is not None:
        ids = list(question.prompt_ids)
    elif tokenizer is None:
        raise UserError(f"{question.name}: the checkpoint has no tokenizer, so give prompt_ids")
    elif question.prompt is not None:
        ids = _encode_text(tokenizer, whole_text(question.prompt, question.name))
    elif question.question is not None:
        ids = _encode_question(tokenizer, whole_text(question.question, question.name), question.name)
    else:
        raise UserError(f"{question.name}: needs one of question, prompt, prompt_ids")
    if not ids:
        raise UserError(f"{question.name}: the prompt is empty")
    return ids


def whole_text(text: str, what: str) -> str:
    """The text. Raises UserError, naming `what`, for a lone surrogate (half a character), which no tokenizer accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what}: character {error.start} is a lone surrogate, which no tokenizer accepts"
        ) from error
    return text


def _encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    encoded = tokenizer(text, add_special_tokens=not has_bos, return_special_tokens_mask=True)
    ids, added = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    while len(ids) > 1 and added[len(ids) - 1]:  # an EOS that some append: a prompt is to be continued
        ids.pop()
    return ids


def _encode_question(tokenizer: Tokenizer, text: str, name: str) -> list[int]:
    if not tokenizer.chat_template:
        return _encode_text(tokenizer, text)
    rendered = render_chat(tokenizer, [{"role": "user", "content": text}], name)
    return list(tokenizer.encode(rendered, add_special_tokens=False))


def render_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], what: str) -> str:
    """The prompt that the tokenizer's chat template makes of messages, up to where the assistant's answer begins.

    Raises:
      UserError: the template fails, as many do on a system message; begins with `what`.
    """
    try:
        return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program that may raise anything
        raise UserError(
            f"{what}: the tokenizer's chat template fails ({' '.join(str(error).split())}); "
            "give the prompt as plain text instead"
        ) from error


def opened_once(tokenizer: Tokenizer, prompt_ids: Sequence[int], *outputs: str) -> list[int]:
    """The prompt, without the `<think>` that its template ends with if all outputs begin with their own.

    Data sets and servers write the tag before the thought, whether the model or its template opened it. Two
    tags in a row would be a context that the model never sees.
    """
    ids = list(prompt_ids)
    begun = all(output.lstrip().startswith(OPEN_THOUGHT) for output in outputs)
    return ids[: thought_opening(tokenizer, ids)] if begun else ids


def without_thought(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> list[int]:
    """The prompt with an empty thought where its chat template opens one: the next token is one of the answer."""
    ids = list(prompt_ids)
    if thought_opening(tokenizer, ids) is not None:
        ids += tokenizer.encode(f"\n{CLOSE_THOUGHT}\n\n", add_special_tokens=False)
    return ids


def thought_opening(tokenizer: Tokenizer, ids: list[int]) -> int | None:
    """Where a final `<think>` of the ids begins, with the white space around it; None without one."""
    # Llama 3's tokenizers ask for a clean-up of spaces, which is never done here and of which transformers
    # would warn.
    spelled = functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    if spelled(ids[-_LONGEST_TAG:]).rstrip().endswith(OPEN_THOUGHT):
        for start in range(len(ids) - 1, max(-1, len(ids) - _LONGEST_TAG - 1), -1):
            if spelled(ids[start:]).strip() == OPEN_THOUGHT:
                return start
    return None


def check_prompt_ids(ids: Sequence[int], config: ModelConfig, name: str, new_tokens: int = 0) -> None:
    """Refuses prompts that the model cannot read.

    Args:
      ids: the prompt.
      config: of the model.
      name: of the question or line, for the message.
      new_tokens: how many tokens must still fit into the context.

    Raises:
      UserError: empty, an id outside the vocabulary, or longer than the context.
    """
    if not ids:
        raise UserError(f"{name}: the prompt is empty")
    for id in ids:
        if not 0 <= id < config.vocab_size:
            raise UserError(f"{name}: token id {id} is outside the vocabulary of {config.vocab_size}")
    if len(ids) + new_tokens > config.context:
        raise UserError(
            f"{name}: {len(ids)} prompt tokens + {new_tokens} new tokens exceed the model's context of "
            f"{config.context} (config.json: {config.context_key})"
        )


def decode(tokenizer: Tokenizer | None, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens left out and nothing cleaned up; "" without a tokenizer."""
    if tokenizer is None:
        return ""
    # `skip_special_tokens` does not skip tokens that are special by tokenizer_config.json alone.
    special = _special_ids(tokenizer)
    spelled = [int(id) for id in ids if int(id) not in special]
    return tokenizer.decode(spelled, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def eos_ids(
    config: ModelConfig, tokenizer: Tokenizer | None = None, where: str = "config"
) -> tuple[int, ...]:
    """End-of-sequence ids: those of config.json and generation_config.json, then the tokenizer's.

    Those outside the vocabulary are left out: a model that cannot emit them ends with another.

    Args:
      config: of the model.
      tokenizer: of the model, or None.
      where: what names them, for the message.

    Raises:
      UserError: there are some, and all are outside the vocabulary.
    """
    named = merge_eos(config.eos_token_ids, None if tokenizer is None else tokenizer.eos_token_id)
    known = tuple(id for id in named if 0 <= id < config.vocab_size)
    if named and not known:
        raise UserError(
            f"{where}: no output can end: eos_token_id {', '.join(map(str, named))} is outside the vocabulary of "
            f"{config.vocab_size}; name one that is inside, or none"
        )
    return known
