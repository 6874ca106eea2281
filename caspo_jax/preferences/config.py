"""How pairs are chosen."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from caspo_jax.checks import at_least, one_of, own_numbers, within
from caspo_jax.errors import UserError
from caspo_jax.types import PairKind

KINDS: tuple[PairKind, ...] = get_args(PairKind)
COMPETITORS = ("step", "token")
PICKS = ("confident", "random", "nearest")


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """Options of `select_pairs` (docs/design.md, section 3, preference pairs)."""

    # tau is this quantile of the confidences of the distinct candidates that pass the filters
    tau_quantile: float = 0.5
    tau: float | None = None  # a fixed tau instead
    kinds: tuple[PairKind, ...] = ("wrong", "low_confidence_correct")  # in this order a prefix's places go
    max_pairs_per_prefix: int = 4
    competitor: Literal["step", "token"] = "step"  # `token`: the swapped token only, unverified
    pick: Literal["confident", "random", "nearest"] = "confident"  # which wrong steps, against which siblings
    allow_flawed_prefix: bool = False  # also prefixes with a step that is not verified correct
    include_aligned: bool = False  # also pairs correct and sure against wrong and unsure
    seed: int = 0  # of pick="random" and "nearest"

    def __post_init__(self) -> None:
        own_numbers(self)
        within(self, "[0, 1]", "tau_quantile")
        within(self, "(-inf, inf)", "tau", optional=True)
        at_least(self, 1, "max_pairs_per_prefix")
        at_least(self, 0, "seed")
        one_of(self, "competitor", COMPETITORS)
        one_of(self, "pick", PICKS)
        if not self.kinds or len(set(self.kinds)) != len(self.kinds) or not set(self.kinds) <= set(KINDS):
            raise UserError(f"kinds={self.kinds!r} must name {' and/or '.join(KINDS)}, each once")

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
