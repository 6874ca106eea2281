"""caspo_jax: confidence-aligned reasoning models in pure JAX (CASPO, CaT, faithful confidence)."""

import importlib.metadata

from caspo_jax import confidence, metrics
from caspo_jax.confidence import step_confidence, token_logprobs, token_stats
from caspo_jax.errors import UserError
from caspo_jax.models import Decoder, LoraConfig, ModelConfig, load_pretrained, save_pretrained, token_bytes
from caspo_jax.sampling import CatConfig, SampleConfig, cat_decode, cat_search, explore, generate
from caspo_jax.sharding import make_mesh
from caspo_jax.training import LossConfig, TrainConfig, dpo_loss, step_dpo_loss, train
from caspo_jax.types import CatResult, Pair, PairBatch, Question, Step, StepRows, Trace

__all__ = [
    "CatConfig",
    "CatResult",
    "Decoder",
    "LoraConfig",
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
    "make_mesh",
    "metrics",
    "save_pretrained",
    "step_confidence",
    "step_dpo_loss",
    "token_bytes",
    "token_logprobs",
    "token_stats",
    "train",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # only here: a copy on the path that was not installed has none
        return importlib.metadata.version("caspo_jax")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
