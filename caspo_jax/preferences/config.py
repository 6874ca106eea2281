"""How pairs are chosen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

from caspo_jax.errors import UserError
from caspo_jax.types import PairKind

KINDS: tuple[PairKind, ...] = get_args(PairKind)


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """Options of `select_pairs` (DESIGN section 3, preference pairs)."""

    tau_quantile: float = 0.5  # tau is this quantile of the candidates' confidences
    tau: float | None = None  # a fixed tau instead
    kinds: tuple[PairKind, ...] = ("wrong", "low_confidence_correct")  # in this order a prefix's places go
    max_pairs_per_prefix: int = 4
    competitor: Literal["step", "token"] = "step"  # `token`: the swapped token only, unverified
    pick: Literal["confident", "random", "nearest"] = "confident"  # which wrong steps, against which siblings
    allow_flawed_prefix: bool = False  # also prefixes with a step that is not verified correct
    include_aligned: bool = False  # also pairs correct and sure against wrong and unsure
    seed: int = 0  # of pick="random" and "nearest"

    def __post_init__(self) -> None:
        if not 0.0 <= self.tau_quantile <= 1.0:
            raise UserError(f"tau_quantile={self.tau_quantile} must be between 0 and 1")
        if self.tau is not None and not math.isfinite(self.tau):
            raise UserError(f"tau={self.tau} must be a finite number (or None)")
        if self.max_pairs_per_prefix < 1:
            raise UserError(f"max_pairs_per_prefix={self.max_pairs_per_prefix} must be at least 1")
        if not self.kinds or len(set(self.kinds)) != len(self.kinds) or not set(self.kinds) <= set(KINDS):
            raise UserError(f"kinds={self.kinds!r} must name {' and/or '.join(KINDS)}, each once")
        if self.competitor not in ("step", "token"):
            raise UserError(f"competitor={self.competitor!r} must be 'step' or 'token'")
        if self.pick not in ("confident", "random", "nearest"):
            raise UserError(f"pick={self.pick!r} must be 'confident', 'random' or 'nearest'")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> PairConfig:
        """A named rule of `PAIR_PRESETS`, with some fields changed."""
        if name not in PAIR_PRESETS:
            raise UserError(f"preset={name!r} is unknown: choose one of {', '.join(PAIR_PRESETS)}")
        return dataclasses.replace(PAIR_PRESETS[name], **overrides)


# `paper`: both kinds, the least confident correct step as the chosen one. `caspo`: what measured best on the embedded
# task (experiments/configs/quickstart.py has the figures): wrong steps against the correct sibling that begins alike.
PAIR_PRESETS: dict[str, PairConfig] = {
    "paper": PairConfig(),
    "caspo": PairConfig(kinds=("wrong",), pick="nearest"),
}
