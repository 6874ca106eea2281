"""Logits -> token statistics -> step confidence -> path confidence.

`token`, `step` and `path` are these three; `chunked` has the statistics from hidden states without all logits at once;
`model_stats`, `scoring` and `forced` take given tokens through a model; `hidden` (RCC) and `probe` read its hidden states.
"""

from caspo_jax.confidence.chunked import (
    chunked_stats,
    hidden_stats_and_kl,
    hidden_token_stats,
)
from caspo_jax.confidence.hidden import rcc, rcc_batch
from caspo_jax.confidence.model_stats import model_token_stats, token_logprobs, token_logprobs_and_entropy
from caspo_jax.confidence.path import (
    BOUNDED_PATHS,
    PATH_CONFIDENCES,
    PathState,
    path_confidence,
    path_init,
    path_update,
    path_value,
    register_path_confidence,
)
from caspo_jax.confidence.step import (
    BOUNDED_STEPS,
    STEP_CONFIDENCES,
    needed_fields,
    register_step_confidence,
    step_confidence,
)
from caspo_jax.confidence.token import TOKEN_FIELDS, TokenStats, token_stats

__all__ = [
    "BOUNDED_PATHS",
    "BOUNDED_STEPS",
    "PATH_CONFIDENCES",
    "STEP_CONFIDENCES",
    "TOKEN_FIELDS",
    "PathState",
    "TokenStats",
    "chunked_stats",
    "hidden_stats_and_kl",
    "hidden_token_stats",
    "model_token_stats",
    "needed_fields",
    "path_confidence",
    "path_init",
    "path_update",
    "path_value",
    "rcc",
    "rcc_batch",
    "register_path_confidence",
    "register_step_confidence",
    "step_confidence",
    "token_logprobs",
    "token_logprobs_and_entropy",
    "token_stats",
]
