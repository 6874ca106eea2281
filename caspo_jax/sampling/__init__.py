"""The decode loop, the tree, the policies: model -> traces."""

from caspo_jax.sampling.api import cat_search, cat_sweep, explore, generate
from caspo_jax.sampling.automaton import Automaton, build_automaton
from caspo_jax.sampling.config import CatConfig, SampleConfig
from caspo_jax.sampling.knobs import Knobs
from caspo_jax.sampling.loop import cat_decode
from caspo_jax.sampling.policy import (
    Boundary,
    NamedPathConfidence,
    NamedStepConfidence,
    Policy,
    make_policy,
    register_prune_rule,
)
from caspo_jax.sampling.questions import as_questions, question_keys
from caspo_jax.sampling.sampler import Sampler
from caspo_jax.sampling.segments import (
    Segment,
    character_spans,
    first_stop,
    segment_bytes,
    segment_tokens,
    token_text,
)
from caspo_jax.sampling.state import CatState, init_state
from caspo_jax.sampling.tree import Tree, tree_of
from caspo_jax.sampling.units import Usage
from caspo_jax.sampling.votes import merge_answers, vote

__all__ = [
    "Automaton",
    "Boundary",
    "CatConfig",
    "CatState",
    "Knobs",
    "NamedPathConfidence",
    "NamedStepConfidence",
    "Policy",
    "SampleConfig",
    "Sampler",
    "Segment",
    "Tree",
    "Usage",
    "as_questions",
    "build_automaton",
    "cat_decode",
    "cat_search",
    "cat_sweep",
    "character_spans",
    "explore",
    "first_stop",
    "generate",
    "init_state",
    "make_policy",
    "merge_answers",
    "question_keys",
    "register_prune_rule",
    "segment_bytes",
    "segment_tokens",
    "token_text",
    "tree_of",
    "vote",
]
