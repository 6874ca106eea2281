"""The decode loop, the tree, the policies: model -> traces."""

from caspo_jax.sampling.automaton import Automaton, build_automaton
from caspo_jax.sampling.config import CatConfig, SampleConfig
from caspo_jax.sampling.loop import cat_decode
from caspo_jax.sampling.policy import NamedPathConfidence, NamedStepConfidence, Policy, make_policy
from caspo_jax.sampling.sampler import Sampler
from caspo_jax.sampling.segments import segment_bytes, segment_tokens
from caspo_jax.sampling.state import CatState, Knobs, init_state

__all__ = [
    "Automaton",
    "CatConfig",
    "CatState",
    "Knobs",
    "NamedPathConfidence",
    "NamedStepConfidence",
    "Policy",
    "SampleConfig",
    "Sampler",
    "build_automaton",
    "cat_decode",
    "init_state",
    "make_policy",
    "segment_bytes",
    "segment_tokens",
]
