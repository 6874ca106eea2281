"""A table-driven model of the next token, with one table a question, and its vocabulary."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.sampling import (
    CatConfig,
    Knobs,
    NamedPathConfidence,
    Policy,
    SampleConfig,
    Sampler,
    init_state,
)
from caspo_jax.sampling.automaton import Automaton, build_automaton
from caspo_jax.sampling.policy import NamedStepConfidence

VOCABULARY = (b"a", b".", b"\n", b"\n\n", b".\n\n", b"\n\n\n", b"\na", b"b\n\na", b"b", b"")
EOS = len(VOCABULARY) - 1
PROMPT = 0
BATCH, CAPACITY = 16, 24


def decode(tables, cache, token, position, column):
    """Each row reads the table of its question; the cache counts how often each row was copied onto."""
    question = jnp.arange(token.shape[0]) // (token.shape[0] // tables.shape[0])
    return tables[question, token], cache


def copy_rows(cache, source, destination, count):
    return cache


@dataclasses.dataclass(frozen=True)
class Dyadic:
    """A step confidence that is exact in float32 and often ties: 1, 1/2 or 1/4 by the number of counted tokens."""

    def __call__(self, stats, mask):
        return jnp.asarray([1.0, 0.5, 0.25])[jnp.sum(mask, axis=-1) % 3]


def make_policy(prune, fork, step="dyadic", path="min", sampler=Sampler()) -> Policy:  # noqa: B008
    confidence = Dyadic() if step == "dyadic" else NamedStepConfidence(step)
    return Policy(decode, copy_rows, sampler, confidence, NamedPathConfidence(path), prune, fork)


def tables(seed: int, batch: int = BATCH) -> np.ndarray:
    """[batch, V, V] float32 logits; EOS is rare."""
    rng = np.random.default_rng(seed)
    out = rng.normal(size=(batch, len(VOCABULARY), len(VOCABULARY))) * rng.uniform(0.3, 2.0)
    out[..., EOS] -= rng.uniform(0.0, 3.0)
    return out.astype(np.float32)


def padded(automaton: Automaton) -> Automaton:
    """One shape for every delimiter and stop string, so that the loop is compiled once."""

    def pad(x, rows, columns):
        return jnp.pad(x, [(0, rows - x.shape[0]), (0, columns - x.shape[1])])

    grown = {n: pad(getattr(automaton, n), 8, 12) for n in ("next_state", "extends", "close_end", "pure")}
    grown |= {n: pad(getattr(automaton, n), 8, 12) for n in ("stop_next", "stop_hit")}
    return dataclasses.replace(automaton, **grown)


def start(model, keys, config: CatConfig, eos=EOS, capacity=CAPACITY):
    """The state of a batch of questions, all with the same one-token prompt."""
    settings = config.sample
    automaton = build_automaton(
        VOCABULARY, settings.step_delimiter, settings.stop, () if settings.ignore_eos else (eos,)
    )
    batch = len(model)
    return init_state(
        (),
        jnp.asarray(model)[:, PROMPT],
        jnp.asarray(keys),
        jnp.ones(batch, jnp.int32),
        padded(automaton),
        Knobs.of(config),
        num_slots=config.num_branches,
        roots=config.roots,
        capacity=capacity,
    )


def question_keys(seed: int, batch: int = BATCH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, (batch, 2), dtype=np.uint32)


def config(**changes) -> CatConfig:
    sample = {
        k: changes.pop(k) for k in list(changes) if k in {f.name for f in dataclasses.fields(SampleConfig)}
    }
    return CatConfig(**changes, sample=SampleConfig(**sample))


def key_of(seed: int) -> tuple[int, ...]:
    return tuple(int(x) for x in jax.random.key_data(jax.random.key(seed)))
