"""Training: losses, the jitted step, the loop, checkpoints. Pairs in, policy out."""

from caspo_jax.training.config import PRESETS, LossConfig, TrainConfig
from caspo_jax.training.loop import TrainSummary, train
from caspo_jax.training.losses import dpo_loss, pair_losses
from caspo_jax.training.monitor import DisplacementMonitor, LikelihoodDisplacementWarning
from caspo_jax.training.optimizer import make_optimizer, make_schedule
from caspo_jax.training.step_logprobs import StepSums, reference_logprobs, step_sums
from caspo_jax.training.step_loss import step_dpo_loss
from caspo_jax.training.step_state import TrainState
from caspo_jax.training.train_step import TrainStep, make_train_step, trained_model

__all__ = [
    "PRESETS",
    "DisplacementMonitor",
    "LikelihoodDisplacementWarning",
    "LossConfig",
    "StepSums",
    "TrainConfig",
    "TrainState",
    "TrainStep",
    "TrainSummary",
    "dpo_loss",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "pair_losses",
    "reference_logprobs",
    "step_dpo_loss",
    "step_sums",
    "train",
    "trained_model",
]
