"""ModelConfig: what a Hugging Face config.json says, or a refusal by name."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError, named_by
from caspo_jax.models.config_fields import flag, integer, number, token_id, token_ids
from caspo_jax.models.rope import RopeConfig
from caspo_jax.store import read_json

# model_type -> the class that transformers calls it by
ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
DTYPES = ("float32", "bfloat16", "float16")
# Qwen3 configs may leave head_dim out, and then it is not hidden_size / heads.
_QWEN3_HEAD_DIM = 128
# max_position_embeddings where config.json leaves it out.
_CONTEXTS = {"qwen2": 32768, "qwen3": 32768, "llama": 2048}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a decoder (Qwen2/2.5, Qwen3, Llama 3.x). Hashable: it is part of the graphdef.

    Raises:
      UserError: sizes of no decoder, an unknown architecture, or biases that it does not have.
    """

    model_type: str  # qwen2 | qwen3 | llama
    vocab_size: int  # V
    hidden_size: int  # E
    intermediate_size: int
    num_layers: int  # L
    num_heads: int  # H
    num_kv_heads: int  # G
    head_dim: int  # D
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False  # bias of the attention's output projection
    mlp_bias: bool = False
    initializer_range: float = 0.02
    dtype: str | None = "float32"  # the dtype the checkpoint is stored in; None where config.json names none
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()  # config.json, generation_config.json and tokenizer, merged
    generation_json: str | None = None  # generation_config.json as it was, kept on export

    def __post_init__(self):
        if self.model_type not in ARCHITECTURES:
            raise UserError(
                f"config: model_type {self.model_type!r} is not supported (known: {', '.join(ARCHITECTURES)})"
            )
        _check_biases(self)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"config: {name} must be at least 1, not {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"config: num_attention_heads {self.num_heads} is no multiple of num_key_value_heads {self.num_kv_heads}"
            )
        if not 0 <= self.rms_norm_eps < math.inf:
            raise UserError(f"config: rms_norm_eps must be 0 or more, not {self.rms_norm_eps}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(f"config: head_dim must be even, not {self.head_dim}")

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are RMS-normalised per head (Qwen3)."""
        return self.model_type == "qwen3"

    @property
    def context(self) -> int:
        """The most tokens of a row: max_position_embeddings, or YaRN's factor x original context if more."""
        if self.rope.rope_type != "yarn":
            return self.max_position_embeddings
        original = self.rope.original_max_position_embeddings or self.max_position_embeddings
        return max(self.max_position_embeddings, int((self.rope.factor or 1.0) * original))

    @property
    def context_key(self) -> str:
        """The key of config.json that `context` comes from, for messages."""
        if self.context == self.max_position_embeddings:
            return "max_position_embeddings"
        return "factor in rope_scaling or rope_parameters"

    @classmethod
    def from_hf(cls, source: Mapping[str, Any] | str | Path) -> ModelConfig:
        """Reads a config.json in either dialect; refuses by name what this decoder does not compute.

        Args:
          source: the parsed dictionary, the path of a config.json, or of the folder that holds one (then
            generation_config.json beside it is read too).

        Raises:
          UserError: unknown architecture, rope type, activation, sliding windows in use, quantisation, a missing key.
        """
        if isinstance(source, Mapping):
            return _from_file(source, "config.json", None)
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        config = read_json(path)
        generation = path.parent / "generation_config.json"
        text = None
        if generation.exists():
            read_json(generation)
            text = generation.read_text(encoding="utf-8-sig")
        return _from_file(config, str(path), text)

    def to_hf(self, dtype: str | None = None) -> dict[str, Any]:
        """Returns config.json in both dialects at once: that of transformers 5, and that of older readers."""
        rope = self.rope.to_hf()
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        eos: int | list[int] | None = list(self.eos_token_ids) or None
        if len(self.eos_token_ids) == 1:
            eos = self.eos_token_ids[0]
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "attention_bias": self.qkv_bias,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "dtype": dtype or self.dtype,
            "eos_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.model_type,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": rope,
            "rope_scaling": None if self.rope.rope_type == "default" else scaling,
            "rope_theta": self.rope.theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": dtype or self.dtype,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
        if self.model_type == "llama":
            config["mlp_bias"] = self.mlp_bias
        else:
            config["use_sliding_window"] = False
            config["sliding_window"] = None
            config["layer_types"] = ["full_attention"] * self.num_layers
        if self.model_type == "qwen2":
            del config["attention_bias"]  # always there in this architecture, and no key of its config
        return dict(sorted(config.items()))


def _check_biases(config: ModelConfig) -> None:
    """No checkpoint of the architecture could hold other biases than these."""
    kind, given = config.model_type, f"qkv_bias={config.qkv_bias} and output_bias={config.output_bias}"
    if kind == "qwen2" and (config.output_bias or not config.qkv_bias):
        raise UserError(f"config: qwen2 always has qkv_bias=True and output_bias=False, not {given}")
    if kind != "qwen2" and config.qkv_bias != config.output_bias:
        raise UserError(f"config: {kind} has both biases or neither, not {given}; give both the same value")
    if kind != "llama" and config.mlp_bias:
        raise UserError(f"config: {kind} has no mlp_bias=True (llama alone); give mlp_bias=False")


def merge_eos(*sources: int | list[int] | tuple[int, ...] | None) -> tuple[int, ...]:
    """Merges end-of-sequence ids, each given as an id, a list or None, keeping the order of first mention."""
    ids: list[int] = []
    for source in sources:
        for token in source if isinstance(source, list | tuple) else [source]:
            if token is not None and int(token) not in ids:
                ids.append(int(token))
    return tuple(ids)


def _from_file(config: Mapping[str, Any], where: str, generation_json: str | None) -> ModelConfig:
    with named_by(where, "config"):
        return _from_dict(config, where, generation_json)


def _from_dict(config: Mapping[str, Any], where: str, generation_json: str | None) -> ModelConfig:
    model_type = config.get("model_type")
    named = config.get("architectures") or model_type
    named = named[0] if isinstance(named, list) else named
    if named not in (model_type, ARCHITECTURES.get(str(model_type))) or str(model_type) not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES.values())
        raise UserError(
            f"{where}: architecture {named!r} (model_type {model_type!r}) is not supported (known: {known})"
        )
    model_type = str(model_type)
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else quantised
        raise UserError(
            f"{where}: quantised checkpoints ({method}) are not supported; use the unquantised one"
        )
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UserError(f"{where}: hidden_act {activation!r} is not supported (only silu)")
    num_layers = integer(config, "num_hidden_layers", where)
    _refuse_sliding_windows(config, num_layers, where)
    hidden, heads = integer(config, "hidden_size", where), integer(config, "num_attention_heads", where)
    head_dim = _QWEN3_HEAD_DIM
    if model_type != "qwen3" and config.get("head_dim") is None:
        if heads < 1 or hidden % heads:
            raise UserError(f"{where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
        head_dim = hidden // heads
    attention_bias = flag(config, "attention_bias", where)
    context = integer(config, "max_position_embeddings", where, _CONTEXTS[model_type])
    generation = json.loads(generation_json) if generation_json else {}
    beside = str(Path(where).with_name("generation_config.json"))
    bos, pad = token_id(config, "bos_token_id", where), token_id(config, "pad_token_id", where)
    vocab_size = integer(config, "vocab_size", where)
    if pad is None:
        pad = token_id(generation, "pad_token_id", beside)
        if pad is not None and pad >= vocab_size:
            pad = None  # an export would write it into config.json, and no reader opens a model with it there
    return ModelConfig(
        model_type=model_type,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=integer(config, "intermediate_size", where),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=integer(config, "num_key_value_heads", where, heads),
        head_dim=integer(config, "head_dim", where, head_dim),
        rope=RopeConfig.from_hf({**config, "max_position_embeddings": context}, where),
        rms_norm_eps=number(config, "rms_norm_eps", where, 1e-6),
        max_position_embeddings=context,
        tie_word_embeddings=flag(config, "tie_word_embeddings", where),
        qkv_bias=True if model_type == "qwen2" else attention_bias,
        output_bias=False if model_type == "qwen2" else attention_bias,
        mlp_bias=flag(config, "mlp_bias", where) if model_type == "llama" else False,
        initializer_range=number(config, "initializer_range", where, 0.02),
        dtype=_dtype(config, where),
        bos_token_id=token_id(generation, "bos_token_id", beside) if bos is None else bos,
        pad_token_id=pad,
        eos_token_ids=merge_eos(
            token_ids(config, "eos_token_id", where), token_ids(generation, "eos_token_id", beside)
        ),
        generation_json=generation_json,
    )


def _dtype(config: Mapping[str, Any], where: str) -> str | None:
    dtype = config.get("dtype") or config.get("torch_dtype")
    if not dtype:
        return None
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"{where}: dtype {dtype!r} is not supported (known: {', '.join(DTYPES)})")
    return dtype


def _refuse_sliding_windows(config: Mapping[str, Any], num_layers: int, where: str) -> None:
    """A window that no layer uses (most Qwen configs carry one) is no obstacle; one in use is."""
    if config.get("model_type") == "llama":
        return  # this architecture has none, whatever its config carries
    layer_types = config.get("layer_types")
    if layer_types is None:
        window = config.get("sliding_window", 4096) if flag(config, "use_sliding_window", where) else None
        slides = window is not None and integer(config, "max_window_layers", where, 28) < num_layers
    elif isinstance(layer_types, list):
        unknown = [kind for kind in layer_types if kind not in ("full_attention", "sliding_attention")]
        if unknown:
            raise UserError(f"{where}: layer type {unknown[0]!r} is not supported (only full_attention)")
        slides = "sliding_attention" in layer_types
    else:
        raise UserError(f"{where}: layer_types must be a list, not {layer_types!r}")
    if slides:
        raise UserError(
            f"{where}: sliding-window attention is in use and is not supported (only full attention)"
        )
