"""What the benchmarks share: a checkpoint with random weights, pairs of random tokens, and how much work they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from caspo_jax.models import ModelConfig

_FIRST_ID = 16  # lower ids are left to padding and the like


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Qwen3-shaped decoder with tied embeddings; the default has 12.3 M parameters."""

    vocab_size: int = 32_768
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 32
    model_type: str = "qwen3"
    tie_word_embeddings: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def of(cls, config: ModelConfig) -> Shape:
        """What of a model's configuration decides how much work it is."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})

    @property
    def layer_parameters(self) -> int:
        """Entries of all layers' matrices."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)


@dataclasses.dataclass(frozen=True)
class Workload:
    """Preference pairs as token ids. A row is prompt + prefix + step; only the step is scored."""

    name: str
    pairs: list[dict[str, list[int]]]  # prompt, prefix, chosen, rejected
    batch_size: int  # pairs an update

    @property
    def rows(self) -> list[list[int]]:
        """Every sequence, each by itself."""
        return [p["prompt"] + p["prefix"] + p[side] for p in self.pairs for side in ("chosen", "rejected")]

    @property
    def row_tokens(self) -> int:
        """Tokens of all rows: what a trainer reads that shares nothing."""
        return sum(map(len, self.rows))


def make_checkpoint(shape: Shape, path: Path, dtype: str = "float32", seed: int = 0) -> Path:
    """Write a Hugging Face folder of random weights."""
    import jax.numpy as jnp
    from flax import nnx

    from caspo_jax.models import Decoder, ModelConfig, save_pretrained

    config = ModelConfig(
        max_position_embeddings=4096,
        dtype=dtype,
        eos_token_ids=(1,),
        pad_token_id=0,
        **dataclasses.asdict(shape),
    )
    save_pretrained(Decoder(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(seed)), None, path)
    return path


def unrelated_pairs(
    count: int,
    vocab_size: int,
    prompt: int = 64,
    response: int = 192,
    batch_size: int = 8,
    seed: int = 0,
    *,
    uneven: bool = False,
) -> Workload:
    """Pairs that share nothing but each its own prompt: whole responses of equal length, or from a sixth of it on."""
    draw = _drawer(vocab_size, seed)
    drawn = (
        np.random.default_rng([seed, count]).integers(max(1, response // 6), response + 1, 2 * count).tolist()
    )
    lengths = iter(drawn if uneven else [response] * (2 * count))
    pairs = [
        {"prompt": draw(prompt), "prefix": [], "chosen": draw(next(lengths)), "rejected": draw(next(lengths))}
        for _ in range(count)
    ]
    return Workload("uneven" if uneven else "pairs", pairs, batch_size)


def step_pairs(
    traces: int, vocab_size: int, prompt: int = 64, steps: int = 16, step: int = 20, seed: int = 0
) -> Workload:
    """A pair at each step of each trace: the trace's own step against another; the prefix is the trace so far."""
    draw = _drawer(vocab_size, seed)
    pairs = []
    for _ in range(traces):
        start, trunk = draw(prompt), [draw(step) for _ in range(steps)]
        pairs += [_step_pair(start, trunk, i, draw(step)) for i in range(steps)]
    return Workload("steps", pairs, steps)


def question_pairs(
    questions: int,
    vocab_size: int,
    prompt: int = 64,
    steps: int = 16,
    step: int = 20,
    seed: int = 0,
    *,
    samples: int = 8,
    pairs: int = 2,
) -> Workload:
    """What a round of CASPO makes: traces of some steps that share a question's prompt, a pair at a few steps of each.

    An update has the pairs of two questions.
    """
    draw, rng = _drawer(vocab_size, seed), np.random.default_rng([seed, questions])
    made = []
    for _ in range(questions):
        start = draw(prompt)
        for _ in range(samples):
            trunk = [draw(step) for _ in range(int(rng.integers(max(1, steps // 4), steps + 1)))]
            for i in sorted(rng.choice(len(trunk), min(pairs, len(trunk)), replace=False).tolist()):
                made.append(_step_pair(start, trunk, i, draw(step)))
    return Workload("questions", made, 2 * samples * pairs)


def _step_pair(prompt: list[int], trunk: list[list[int]], at: int, other: list[int]) -> dict[str, list[int]]:
    """A trace's own step against another; the prefix is the trace so far."""
    prefix = [token for part in trunk[:at] for token in part]
    return {"prompt": prompt, "prefix": prefix, "chosen": trunk[at], "rejected": other}


def as_pairs(pairs: list[dict[str, list[int]]]) -> list[Any]:
    """A workload's pairs as caspo_jax has them."""
    from caspo_jax.types import Pair

    return [
        Pair(
            id=str(i),
            kind="wrong",
            prompt="",
            prefix="",
            chosen="",
            rejected="",
            prompt_ids=tuple(pair["prompt"]),
            prefix_ids=tuple(pair["prefix"]),
            chosen_ids=tuple(pair["chosen"]),
            rejected_ids=tuple(pair["rejected"]),
            ends_trace=(False, False),
        )
        for i, pair in enumerate(pairs)
    ]


def _drawer(vocab_size: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return lambda count: rng.integers(_FIRST_ID, vocab_size, count).tolist()


def useful_flops(shape: Shape, workload: Workload, lora: bool = False) -> float:
    """Operations that a run needs: each distinct token of an update once, forward for the reference, and forward and
    backward for the update; the head on scored tokens alone; nothing recomputed, no padding. With adapters no
    gradient of a weight is needed, and the adapters' own products are not counted.

    A product with a matrix of n entries is 2 n operations a token forward and 4 n backward. Attention is
    4 H D operations a layer for every key that a query sees, forward, and twice that backward.
    """
    tokens = scored = seen = 0
    for start in range(0, len(workload.pairs), workload.batch_size):
        nodes: dict[tuple[int, ...], int] = {}  # distinct beginnings -> their length
        predicted = set()
        for pair in workload.pairs[start : start + workload.batch_size]:
            context = pair["prompt"] + pair["prefix"]
            for side in ("chosen", "rejected"):
                row = tuple(context + pair[side])
                for end in range(len(row), 0, -1):
                    if row[:end] in nodes:
                        break
                    nodes[row[:end]] = end
                predicted |= {row[:end] for end in range(len(context) + 1, len(row) + 1)}
        tokens += len(nodes)
        scored += len(predicted)
        seen += sum(nodes.values())
    layers = 2 * shape.layer_parameters * tokens
    head = 2 * shape.vocab_size * shape.hidden_size * scored
    attention = 4 * shape.num_layers * shape.num_heads * shape.head_dim * seen
    # Attention's products have two gradients each, with or without adapters.
    passes = 3 if lora else 4
    return float(passes * (layers + head) + 4 * attention)
