"""Hugging Face checkpoint <-> Flax (nnx) decoder, KV cache, tokenizer helpers."""

from caspo_jax.models.adapter import load_adapter, save_adapter
from caspo_jax.models.cache import KVCache, init_cache
from caspo_jax.models.cache_rows import branch, copy_rows, grow, split_rows, take_prompts
from caspo_jax.models.config import ModelConfig
from caspo_jax.models.decoder import Decoder
from caspo_jax.models.folder import hash_checkpoint, resolve_folder
from caspo_jax.models.lora import LoraConfig, add_lora, base_model, merge_lora
from caspo_jax.models.pretrained import load_caspo_json, load_pretrained, save_pretrained
from caspo_jax.models.rope import RopeConfig
from caspo_jax.models.tokenizer import (
    check_prompt_ids,
    decode,
    encode_prompt,
    eos_ids,
    load_tokenizer,
    render_chat,
    token_bytes,
)

__all__ = [
    "Decoder",
    "KVCache",
    "LoraConfig",
    "ModelConfig",
    "RopeConfig",
    "add_lora",
    "base_model",
    "branch",
    "check_prompt_ids",
    "copy_rows",
    "decode",
    "encode_prompt",
    "eos_ids",
    "grow",
    "hash_checkpoint",
    "init_cache",
    "load_adapter",
    "load_caspo_json",
    "load_pretrained",
    "load_tokenizer",
    "merge_lora",
    "render_chat",
    "resolve_folder",
    "save_adapter",
    "save_pretrained",
    "split_rows",
    "take_prompts",
    "token_bytes",
]
