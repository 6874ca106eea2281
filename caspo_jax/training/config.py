"""What a training run is made of: the loss, the optimiser's schedule, the batches, the checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from caspo_jax.errors import UserError
from caspo_jax.models.decoder import REMATS, Remat
from caspo_jax.models.lora import LoraConfig

LossName = Literal["sigmoid", "ipo", "sft", "rft"]
LOSSES = ("sigmoid", "ipo", "sft", "rft")
NLL_ON = ("chosen", "verified")
NLL_AVERAGES = ("step", "token")
MASTERS = ("float32", "none")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The options of the step-masked preference loss.

    `sigmoid` (DPO) and `ipo` contrast the two steps of a pair; `sft` (fine-tuning on the chosen steps) and
    `rft` (fine-tuning on every verified step) are the controls: they use no contrast and no reference, so
    `beta`, `label_smoothing`, `dpop_lambda` and `nll_alpha` do not apply to them and must keep their defaults.
    """

    loss: LossName = "sigmoid"
    beta: float = 0.1  # inverse temperature of the implicit reward (for ipo: tau)
    label_smoothing: float = 0.0  # cDPO: the probability that a preference is the wrong way round
    dpop_lambda: float = 0.0  # DPO-Positive: penalty on a chosen log-prob below the reference's
    length_normalised: bool = False  # log-ratios divided by the step's number of tokens
    nll_alpha: float = 0.0  # weight of the NLL term beside the preference loss
    nll_on: Literal["chosen", "verified"] = "chosen"  # whose tokens the NLL term reads
    nll_average: Literal["step", "token"] = (
        "step"  # IRPO: each chosen step, or a trace's verified ones, by its length; or one mean over tokens
    )

    def __post_init__(self) -> None:
        _one_of("loss", self.loss, LOSSES)
        _one_of("nll_on", self.nll_on, NLL_ON)
        _one_of("nll_average", self.nll_average, NLL_AVERAGES)
        _require(_finite(self.beta) and self.beta > 0, f"beta must be > 0, got {self.beta}")
        _require(
            0 <= self.label_smoothing < 0.5,
            f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}",
        )
        for name in ("dpop_lambda", "nll_alpha"):
            value = getattr(self, name)
            _require(_finite(value) and value >= 0, f"{name} must be >= 0, got {value}")
        if self.loss == "ipo":
            _require(
                self.label_smoothing == 0, "label_smoothing applies to the sigmoid loss alone, not to ipo"
            )
        if not self.contrastive:
            for name in ("beta", "label_smoothing", "dpop_lambda", "length_normalised", "nll_alpha"):
                default = type(self).__dataclass_fields__[name].default
                _require(
                    getattr(self, name) == default,
                    f"{name}={getattr(self, name)} does not apply to loss={self.loss}: leave it at {default}",
                )

    @property
    def contrastive(self) -> bool:
        """Whether the loss compares the chosen with the rejected step (and so needs a reference)."""
        return self.loss in ("sigmoid", "ipo")

    @property
    def nll_weight(self) -> float:
        """Weight of the NLL term in the total: alpha, or 1 for the controls that consist of it alone."""
        return self.nll_alpha if self.contrastive else 1.0

    @property
    def uses_verified(self) -> bool:
        """Whether the loss reads `PairBatch.verified`."""
        return self.loss == "rft" or (self.contrastive and self.nll_alpha > 0 and self.nll_on == "verified")

    @property
    def uses_pairs(self) -> bool:
        """Whether the loss reads the pairs at all (`rft` does not)."""
        return self.loss != "rft"

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> LossConfig:
        """The loss of a preset of `PRESETS`, with some fields changed."""
        return dataclasses.replace(TrainConfig.preset(name).loss, **overrides)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One round of training.

    The defaults are those of a 7B full fine-tuning; a small model wants a much larger learning rate.
    A batch is cut into micro-batches whose gradients are summed exactly: `pack_rows` rows of `pack_length` tokens, or
    `micro_batch_size` pairs sorted by length. Smaller ones save memory and padding and change nothing else.
    """

    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    learning_rate: float = 5e-7  # peak
    batch_size: int = 64  # pairs an update (verified steps, for loss=rft)
    pack: str = "trees"  # trees: what pairs and steps of a question share is read once; rows: each by itself
    pack_length: int = 1024  # trees: tokens a row, if the longest pair needs no more
    pack_rows: int = 4  # trees: rows a forward pass
    micro_batch_size: int | None = None  # rows: pairs a forward pass; None: the whole batch at once
    epochs: int = 1  # over the pairs (over the verified steps, for loss=rft)
    max_steps: int | None = None  # stop after this many updates; the schedule ends there too
    verified_per_batch: int | None = None  # at most; None: every verified step once an epoch
    warmup_fraction: float = 0.03  # of the updates, linear
    final_fraction: float = 0.1  # of the peak rate, where the cosine ends
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # global gradient norm
    seed: int = 0  # of the data order
    head_chunk: int | None = None  # step tokens a row whose logits are held at once; None: by the vocabulary
    # What the backward pass recomputes: none; full: all but each layer's input; dots: all but the results of products with
    # weights. With none one CPU keeps the logits too, up to 256 MiB or twice what the head takes, unless head_chunk is given.
    remat: Remat = "none"
    # float32 copies of the weights that updates add up in; none: the weights stay in the model's dtype and are rounded at
    # random, unbiased (Adam's moments are float32 either way)
    masters: Literal["float32", "none"] = "float32"
    lora: LoraConfig | None = None  # train low-rank adapters beside frozen weights; None: train the weights
    min_length: int = 32  # smallest padded row length; lengths are rounded up to few sizes above it
    save_every: int | None = None  # updates between checkpoints; None: one every ten minutes, and at the end
    keep_checkpoints: int = 2  # the last so many
    best_metric: str | None = (
        None  # also keep the best checkpoint: by its mean over the last `save_every` updates
    )
    best_mode: Literal["max", "min"] = "max"  # which values of it are good
    async_checkpoints: bool = True  # write them while training goes on
    skip_nonfinite: bool = (
        False  # leave out updates whose loss or gradient is not finite, instead of stopping
    )
    displacement_margin: float = 0.5  # nats a step that chosen log-probs may fall below the reference's
    displacement_window: int = 8  # updates over which that fall is averaged
    tensorboard: bool = True  # write events under the run's folder, if there is one

    def __post_init__(self) -> None:
        _one_of("pack", self.pack, ("trees", "rows"))
        _one_of("best_mode", self.best_mode, ("max", "min"))
        _one_of("remat", self.remat, REMATS)
        _one_of("masters", self.masters, MASTERS)
        at_least_one = ("batch_size", "epochs", "pack_length", "pack_rows", "min_length", "keep_checkpoints")
        for name in (*at_least_one, "displacement_window"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("micro_batch_size", "max_steps", "save_every", "verified_per_batch", "head_chunk"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1 (or None), got {value}")
        _require(
            self.micro_batch_size is None or self.pack == "rows",
            f"micro_batch_size={self.micro_batch_size} cuts pack=rows alone: pack={self.pack} has pack_rows and pack_length",
        )
        _require(
            _finite(self.learning_rate) and self.learning_rate >= 0,
            f"learning_rate must be >= 0, got {self.learning_rate}",
        )
        for name in ("warmup_fraction", "final_fraction"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("b1", "b2"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        _require(_finite(self.eps) and self.eps > 0, f"eps must be > 0, got {self.eps}")
        _require(0 <= self.seed < 2**63, f"seed must be in [0, 2**63), got {self.seed}")
        _require(
            _finite(self.weight_decay) and self.weight_decay >= 0,
            f"weight_decay must be >= 0, got {self.weight_decay}",
        )
        _require(
            self.clip_norm is None or (_finite(self.clip_norm) and self.clip_norm > 0),
            f"clip_norm must be > 0 (or None, for no clipping), got {self.clip_norm}",
        )

    def shaping(self) -> dict[str, Any]:
        """The settings that shape what is trained, as plain values: a run may go on only with the same ones."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in _KEEPING}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """The config that `dataclasses.asdict` wrote. Raises UserError for settings that this version does not know."""
        inner: dict[str, Any] = {}
        for name, kind in (("loss", LossConfig), ("lora", LoraConfig)):
            if found := settings.get(name):
                _known(found, kind, f"{name}.")
                inner[name] = kind(**found)
        _known(settings, cls)
        return cls(**{**settings, **inner})

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> TrainConfig:
        """A named recipe of `PRESETS`, with some fields changed."""
        if name not in PRESETS:
            raise UserError(f"preset={name!r} is unknown: choose one of {', '.join(PRESETS)}")
        return dataclasses.replace(PRESETS[name], **overrides)


# Settings of TrainConfig that change what is kept, printed or survived, not what is trained.
_KEEPING = (
    "save_every",
    "keep_checkpoints",
    "best_metric",
    "best_mode",
    "async_checkpoints",
    "skip_nonfinite",
    "displacement_margin",
    "displacement_window",
    "tensorboard",
)


def _known(settings: Mapping[str, Any], kind: Any, prefix: str = "") -> None:
    if unknown := sorted(settings.keys() - {field.name for field in dataclasses.fields(kind)}):
        names = ", ".join(prefix + name for name in unknown)
        raise UserError(f"settings that this version does not know: {names}; update caspo_jax")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"{name}={value!r} is unknown: choose one of {', '.join(allowed)}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _finite(value: float) -> bool:
    return math.isfinite(value)


# `paper`: plain DPO with the published settings (beta 0.1, rate 5e-7, 64 pairs, one epoch a round).
# `caspo`: what measured best on the embedded task (experiments/configs/quickstart.py has the figures): mostly NLL on every
# verified step, which keeps likelihoods from falling, and a tenth of contrast.
PRESETS: dict[str, TrainConfig] = {
    "paper": TrainConfig(),
    "caspo": TrainConfig(loss=LossConfig(nll_alpha=10.0, nll_on="verified", nll_average="token")),
}
