"""Rotary position embeddings: the published frequency schedules, and the rotation itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from caspo_jax.errors import UserError, named_by
from caspo_jax.models.config_fields import flag, integer, number, section

ROPE_TYPES = ("default", "linear", "llama3", "yarn")

# What each type computes with beside theta: what it needs, and what it may be given.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_YARN = ("attention_factor", "attn_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")
_OPTIONAL: dict[str, tuple[str, ...]] = {"yarn": _YARN}
_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", *_YARN)
_POSITIVE = (
    "theta",
    "original_max_position_embeddings",
    *(n for n in _NUMBERS if not n.startswith("mscale")),
)
_LARGEST = float(np.finfo(np.float32).max)  # since angles are float32
# Keys of the section that are read separately, or that say only how the model was made.
_ASIDE = ("rope_type", "type", "rope_theta", "original_max_position_embeddings", "finetuned")
# Keys of other types or other readers: allowed with the value that changes nothing.
_NEUTRAL = dict.fromkeys(
    ("partial_rotary_factor", "factor", "attention_factor", "attn_factor", "extrapolation_factor"), 1
) | {"truncate": True, "apply_yarn_scaling": True, "mrope_interleaved": False}


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """The rope section of a checkpoint's config, whichever dialect it was written in.

    Raises:
      UserError: an unknown type; a value that the type needs and lacks, or does not compute with; one that is
        not positive; low_freq_factor not below high_freq_factor.
    """

    rope_type: str = "default"
    theta: float = 10000.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None  # llama3, yarn: the context before scaling
    low_freq_factor: float | None = None  # llama3
    high_freq_factor: float | None = None  # llama3
    attention_factor: float | None = None  # yarn: scales cos and sin, given outright
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    beta_fast: float | None = None  # yarn, 32 if None
    beta_slow: float | None = None  # yarn, 1 if None
    truncate: bool = True  # yarn: round the ramp's ends to whole dimensions
    attn_factor: float | None = None  # yarn: a factor of attention_factor where that is not given

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise UserError(
                f"config: rope type {self.rope_type!r} is not supported (known: {', '.join(ROPE_TYPES)})"
            )
        required = _REQUIRED[self.rope_type]
        missing = [name for name in required if getattr(self, name) is None]
        if missing:
            raise UserError(f"config: rope type {self.rope_type!r} needs {', '.join(missing)}")
        for name in ("original_max_position_embeddings", *_NUMBERS):
            value = getattr(self, name)
            if value is not None and name not in (*required, *_OPTIONAL.get(self.rope_type, ())):
                raise UserError(
                    f"config: rope type {self.rope_type!r} does not compute with {name} {value}; leave it out"
                )
        if self.rope_type != "yarn" and not self.truncate:
            raise UserError(
                f"config: rope type {self.rope_type!r} does not compute with truncate; leave it out"
            )
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"config: rope's {name} must be greater than 0, not {value}")
            if value is not None and value > _LARGEST:
                raise UserError(f"config: rope's {name} must be a float32: at most {_LARGEST:.2g}")
        if self.rope_type == "yarn" and self.theta <= 1:
            raise UserError(f"config: rope's theta must be greater than 1 for 'yarn', not {self.theta}")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and high <= low:
            raise UserError(
                f"config: rope's high_freq_factor {high} must be greater than low_freq_factor {low}"
            )
        if self.attn_factor is not None and self.attention_factor is None:
            if self.mscale and self.mscale_all_dim:
                raise UserError(
                    "config: rope's attn_factor and mscale say two things of one factor; give attention_factor"
                )
            # Resolved here, so that what is written and read again is the same config.
            object.__setattr__(self, "attention_factor", self._magnitude(1.0) * self.attn_factor)

    def _magnitude(self, mscale: float) -> float:
        """YaRN's factor on cos and sin: `0.1 mscale ln(factor) + 1`, or 1 for a context not stretched."""
        assert self.factor is not None
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> RopeConfig:
        """Reads `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (hub configs).

        `rope_scaling` wins where both are given and it is not null, as in transformers, but for a theta that
        `rope_parameters` alone holds. The legacy key `type` is read where `rope_type` is missing, and
        `original_max_position_embeddings` also beside the section, as transformers 5 reads it. yarn's `attn_factor` counts:
        without `attention_factor`, cos and sin are scaled by `(0.1 ln(factor) + 1) * attn_factor`. That is what the key
        meant to those who published it (DeepSeek-R1-0528-Qwen3-8B: 1.0 in all) and how vLLM has served it; transformers
        leaves it out of account, which makes another model of the same weights.

        Args:
          config: the parsed config.json.
          where: its name, for messages.

        Raises:
          UserError: an unknown rope type, a partial rotation, a rope per layer type, a required key missing, a key
            that the type does not compute with, two original contexts.
        """
        written = section(config, "rope_parameters", where)
        scaling = section(config, "rope_scaling", where)
        name, params = ("rope_scaling", dict(scaling)) if scaling else ("rope_parameters", dict(written))
        nested = [key for key, value in params.items() if isinstance(value, Mapping)]
        if nested == ["full_attention"]:
            inner = params.pop("full_attention")
            params |= inner
        elif nested:
            raise UserError(
                f"{where}: rope parameters per layer type ({', '.join(nested)}) are not supported"
            )
        rope_type = params.get("rope_type", params.get("type", "default"))
        if rope_type not in ROPE_TYPES:
            raise UserError(
                f"{where}: rope type {rope_type!r} is not supported (known: {', '.join(ROPE_TYPES)})"
            )
        # `rope_scaling` won above but may not hold what `rope_parameters` does.
        said = (source for source in (params, config, written) if source.get("rope_theta") is not None)
        theta = number(next(said, {}), "rope_theta", where, 10000.0)
        partial = params.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise UserError(f"{where}: partial_rotary_factor {partial} is not supported (only 1.0)")
        read = (*_REQUIRED[rope_type], *_OPTIONAL.get(rope_type, ()))
        for key, value in params.items():
            known = key in (*read, *_ASIDE) or (key == "truncate" and rope_type == "yarn")
            if not (known or value is None or value == _NEUTRAL.get(key)):
                raise UserError(
                    f"{where}: {key} {value!r} in {name} is not supported for rope type {rope_type!r} "
                    f"(read: {', '.join(read) or 'rope_theta'})"
                )
        given: dict[str, Any] = {
            key: number(params, key, where) for key in _NUMBERS if key in read and params.get(key) is not None
        }
        if rope_type in ("llama3", "yarn"):
            context = config.get("max_position_embeddings")
            key = "original_max_position_embeddings"
            inside, beside = params.get(key), config.get(key)
            if inside is not None and beside is not None and inside != beside:
                raise UserError(
                    f"{where}: {key} is {inside} in {name} and {beside} beside it, and readers differ in which they take; "
                    "give it once"
                )
            if any(value is not None for value in (context, inside, beside)):
                given[key] = integer(params if beside is None else config, key, where, context)
            if rope_type == "yarn" and "factor" not in given and context is not None:
                given["factor"] = context / max(given[key], 1)  # below 1 is refused
        truncate = params.get("truncate") is None or flag(params, "truncate", where)
        with named_by(where, "config"):
            return cls(rope_type, theta, truncate=truncate, **given)

    def to_hf(self) -> dict[str, Any]:
        """Returns the `rope_parameters` dictionary of transformers 5; unset keys are left out.

        An `attn_factor` stands beside the `attention_factor` that it is part of: some readers take the one, some the other.
        """
        params: dict[str, Any] = {"rope_type": self.rope_type, "rope_theta": self.theta}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("rope_type", "theta", "truncate") and value is not None:
                params[field.name] = value
        if not self.truncate:
            params["truncate"] = False
        return params


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[np.ndarray, float]:
    """Angular step per position of each rotated pair, and the factor on cos and sin.

    default: `f_i = theta^(-2i/D)`; linear: `f_i / factor`; llama3 keeps short wavelengths, divides long ones by
    `factor` and blends between; yarn blends `f_i` and `f_i / factor` by a ramp over dimensions and scales
    cos and sin by `0.1 ln(factor) + 1` (or what `attention_factor`, `mscale`, `mscale_all_dim` say).
    Float32 throughout, as checkpoints were trained: at position 1e5 one ulp of `f_i` already moves the angle.

    Args:
      rope: the schedule.
      head_dim: D, even.

    Returns:
      Float32 frequencies [D/2] in radians a position, and the attention factor.

    Source: Su et al. 2021 (RoPE); Peng et al. 2023, sections 3.2-3.4 (YaRN); Llama 3.1 model card.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelengths = np.float32(rope.theta) ** exponent
    frequencies = (np.float32(1.0) / wavelengths).astype(np.float32)
    if rope.rope_type == "linear":
        assert rope.factor is not None
        return frequencies / np.float32(rope.factor), 1.0
    if rope.rope_type == "llama3":
        return _llama3(rope, frequencies), 1.0
    if rope.rope_type == "yarn":
        return _yarn(rope, wavelengths, frequencies, head_dim)
    return frequencies, 1.0


def _llama3(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    """Frequencies by wavelength `w = 2 pi / f` in a context of C tokens.

    f if `w < C / high_freq_factor`; f / factor if `w > C / low_freq_factor`; between, with
    `b = (C / w - low_freq_factor) / (high_freq_factor - low_freq_factor)`, `(1 - b) f / factor + b f`.
    """
    assert rope.factor is not None
    assert rope.low_freq_factor is not None
    assert rope.high_freq_factor is not None
    assert rope.original_max_position_embeddings is not None
    factor = np.float32(rope.factor)
    context = np.float32(rope.original_max_position_embeddings)
    wavelength = np.float32(2 * math.pi) / frequencies
    blend = (context / wavelength - np.float32(rope.low_freq_factor)) / np.float32(
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    scaled = np.where(wavelength > context / np.float32(rope.low_freq_factor), frequencies / factor, blended)
    kept = np.where(wavelength < context / np.float32(rope.high_freq_factor), frequencies, scaled)
    return kept.astype(np.float32)


def _yarn(
    rope: RopeConfig, wavelengths: np.ndarray, frequencies: np.ndarray, head_dim: int
) -> tuple[np.ndarray, float]:
    """Frequencies `(1 - r_i) f_i + r_i f_i / factor` and the factor on cos and sin.

    The ramp r goes from 0, at the dimension that turns beta_fast times within the original context, to 1 at
    the one that turns beta_slow times.
    """
    assert rope.factor is not None
    assert rope.original_max_position_embeddings is not None

    def dimension_of(rotations: float) -> float:
        """The (fractional) i with `C f_i / (2 pi) = rotations`: D ln(C / (2 pi rotations)) / (2 ln theta)."""
        assert rope.original_max_position_embeddings is not None
        ratio = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast or 32.0), dimension_of(rope.beta_slow or 1.0)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    index = np.arange(head_dim // 2, dtype=np.float32)
    interpolated = np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1)
    slow = np.float32(1.0) / (np.float32(rope.factor) * wavelengths)
    blended = slow * interpolated + frequencies * (1 - interpolated)

    attention_factor = rope.attention_factor
    if attention_factor is None:
        if rope.mscale and rope.mscale_all_dim:
            attention_factor = rope._magnitude(rope.mscale) / rope._magnitude(rope.mscale_all_dim)
        else:
            attention_factor = rope._magnitude(1.0)
    return blended.astype(np.float32), float(attention_factor)


def rotation(rope: RopeConfig, head_dim: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation at integer positions [...]: two float32 arrays [..., D/2]."""
    frequencies, factor = inverse_frequencies(rope, head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    # Without the barrier XLA fuses them into their consumers, and computes them again for every head of every
    # layer.
    return lax.optimization_barrier((jnp.cos(angles) * factor, jnp.sin(angles) * factor))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (x_i, x_{i+D/2}) in float32 and returns x's dtype.

    Args:
      x: [..., heads, D].
      cos: [..., D/2], one angle a position, shared by the heads.
      sin: [..., D/2].
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
