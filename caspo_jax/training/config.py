"""What a training run is made of: the loss, the optimiser's schedule, the batches, the checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from caspo_jax.checks import at_least, check, one_of, own_numbers, within
from caspo_jax.errors import UserError
from caspo_jax.models.lora import LoraConfig
from caspo_jax.models.remat import REMATS, Remat

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
    `beta`, `label_smoothing`, `dpop_lambda`, `length_normalised` and `nll_alpha` do not apply to them and must keep their
    defaults. Under jit a config is static: close over it, or name it in `static_argnames`.

    Attributes:
      loss: `sigmoid`, `ipo`, `sft` or `rft`.
      beta: inverse temperature of the implicit reward (for ipo: tau), above 0.
      label_smoothing: cDPO: the probability that a preference is the wrong way round, in [0, 0.5).
      dpop_lambda: DPO-Positive: weight of the penalty on a chosen log-prob below the reference's.
      length_normalised: log-ratios are divided by the step's number of tokens.
      nll_alpha: weight of the NLL term beside the preference loss.
      nll_on: whose tokens the NLL term reads: those of the chosen steps, or of every verified step.
      nll_average: `step`, as in IRPO: each chosen step, or a trace's verified ones, by its length; `token`: one mean over
        all tokens.
    """

    loss: LossName = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    dpop_lambda: float = 0.0
    length_normalised: bool = False
    nll_alpha: float = 0.0
    nll_on: Literal["chosen", "verified"] = "chosen"
    nll_average: Literal["step", "token"] = "step"

    def __post_init__(self) -> None:
        own_numbers(self)
        one_of(self, "loss", LOSSES)
        one_of(self, "nll_on", NLL_ON)
        one_of(self, "nll_average", NLL_AVERAGES)
        within(self, "(0, inf)", "beta")
        within(self, "[0, 0.5)", "label_smoothing")
        within(self, "[0, inf)", "dpop_lambda", "nll_alpha")
        if self.loss == "ipo":
            check(self.label_smoothing == 0, "label_smoothing applies to the sigmoid loss alone, not to ipo")
        if not self.contrastive:
            for name in ("beta", "label_smoothing", "dpop_lambda", "length_normalised", "nll_alpha"):
                default = type(self).__dataclass_fields__[name].default
                check(
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
    pack_rows: int = 4  # trees: most rows a forward pass; fewer where they are longer or would be empty
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
    seed: int = 0  # of the data order, of fresh adapters, and of the rounding with masters=none
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
    # Also keep the best checkpoint: by its mean over the last `save_every` updates.
    best_metric: str | None = None
    best_mode: Literal["max", "min"] = "max"  # which values of it are good
    async_checkpoints: bool = True  # write them while training goes on
    skip_nonfinite: bool = False  # leave out updates whose loss or gradient is not finite; else stop
    displacement_margin: float = 0.5  # nats a step that chosen log-probs may fall below the reference's
    displacement_window: int = 8  # updates over which that fall is averaged
    tensorboard: bool = True  # write events under the run's folder, if there is one

    def __post_init__(self) -> None:
        own_numbers(self)
        check(isinstance(self.loss, LossConfig), f"loss={self.loss!r}: give a LossConfig")
        check(isinstance(self.lora, LoraConfig | None), f"lora={self.lora!r}: give a LoraConfig, or None")
        one_of(self, "pack", ("trees", "rows"))
        one_of(self, "best_mode", ("max", "min"))
        one_of(self, "remat", REMATS)
        one_of(self, "masters", MASTERS)
        at_least(self, 1, "batch_size", "epochs", "pack_length", "pack_rows", "min_length")
        at_least(self, 1, "keep_checkpoints", "displacement_window")
        at_least(self, 1, "micro_batch_size", "max_steps", "save_every", optional=True)
        at_least(self, 1, "verified_per_batch", "head_chunk", optional=True)
        check(
            self.micro_batch_size is None or self.pack == "rows",
            f"micro_batch_size={self.micro_batch_size} cuts pack=rows alone: pack={self.pack} has pack_rows and pack_length",
        )
        within(self, "[0, inf)", "learning_rate", "weight_decay")
        within(self, "[0, 1]", "warmup_fraction", "final_fraction")
        within(self, "[0, 1)", "b1", "b2")
        within(self, "(0, inf)", "eps")
        within(self, "(0, inf)", "clip_norm", optional=True, hint="None does not clip")
        within(self, "(-inf, inf)", "displacement_margin")
        at_least(self, 0, "seed")
        check(self.seed < 2**63, f"seed={self.seed}: give less than 2**63")

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


# `paper`: plain DPO with the published settings (beta 0.1, rate 5e-7, 64 pairs, one epoch a round).
# `caspo`: what measured best on the embedded task (experiments/configs/quickstart.py has the figures): mostly NLL on every
# verified step, which keeps likelihoods from falling, and a tenth of contrast.
PRESETS: dict[str, TrainConfig] = {
    "paper": TrainConfig(),
    "caspo": TrainConfig(loss=LossConfig(nll_alpha=10.0, nll_on="verified", nll_average="token")),
}
