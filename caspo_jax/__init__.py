"""caspo_jax: confidence-aligned reasoning models in pure JAX (CASPO, CaT, faithful confidence)."""

from caspo_jax import confidence, metrics
from caspo_jax.confidence import step_confidence, token_logprobs, token_stats
from caspo_jax.errors import UserError
from caspo_jax.models import Decoder, ModelConfig, load_pretrained, save_pretrained
from caspo_jax.sampling import CatConfig, SampleConfig, cat_decode, cat_search, explore, generate
from caspo_jax.training.config import LossConfig, TrainConfig
from caspo_jax.training.losses import dpo_loss
from caspo_jax.training.step_loss import step_dpo_loss
from caspo_jax.types import CatResult, Pair, PairBatch, Question, Step, StepRows, Trace

__all__ = [
    "CatConfig",
    "CatResult",
    "Decoder",
    "LossConfig",
    "ModelConfig",
    "Pair",
    "PairBatch",
    "Question",
    "SampleConfig",
    "Step",
    "StepRows",
    "Trace",
    "TrainConfig",
    "UserError",
    "cat_decode",
    "cat_search",
    "confidence",
    "dpo_loss",
    "explore",
    "generate",
    "load_pretrained",
    "metrics",
    "save_pretrained",
    "step_confidence",
    "step_dpo_loss",
    "token_logprobs",
    "token_stats",
]
