"""Hugging Face checkpoint <-> Flax (nnx) decoder, KV cache, tokenizer helpers."""

from caspo_jax.models.cache import KVCache, copy_rows, grow, init_cache, repeat_rows, take_rows
from caspo_jax.models.config import ModelConfig
from caspo_jax.models.decoder import Decoder
from caspo_jax.models.pretrained import load_caspo_json, load_pretrained, resolve_folder, save_pretrained
from caspo_jax.models.rope import RopeConfig
from caspo_jax.models.tokenizer import (
    check_prompt_ids,
    decode,
    encode_prompt,
    eos_ids,
    load_tokenizer,
    token_bytes,
)

__all__ = [
    "Decoder",
    "KVCache",
    "ModelConfig",
    "RopeConfig",
    "check_prompt_ids",
    "copy_rows",
    "decode",
    "encode_prompt",
    "eos_ids",
    "grow",
    "init_cache",
    "load_caspo_json",
    "load_pretrained",
    "load_tokenizer",
    "repeat_rows",
    "resolve_folder",
    "save_pretrained",
    "take_rows",
    "token_bytes",
]
