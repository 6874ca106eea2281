"""The tokenizer of the tiny policies: byte-level BPE over the embedded tasks' own text, one token a name and a number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}<|user|>{{ message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}<|assistant|>{{ message['content'] }}<|end|>"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)

# A number of one or two digits is one token, and so is a name with what it stands before (`c = `, `c: `): a value or a
# definition is then what followed the same token before.
_PIECES = (
    r"[a-z] = |[a-z]: | [=+*-] |; |\. |, so |, |answer: |\d{1,2}|[a-z](?![a-z])|[A-Za-z]+ ?|\n+|\s|[^\s\w]|_"
)


def build_tokenizer(corpus: Iterable[str], vocab_size: int = 448) -> Any:
    """Train the tokenizer on `corpus` and wrap it for transformers, with a chat template and special tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    specials = [PAD, END, USER, ASSISTANT]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
