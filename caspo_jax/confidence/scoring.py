"""Log-probs and entropies of the tokens of given outputs, by one teacher-forced pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from caspo_jax.confidence.model_stats import token_logprobs_and_entropy
from caspo_jax.errors import UserError
from caspo_jax.padding import groups, padded_rows
from caspo_jax.sharding import batch_ways, mesh_of, to_host

_BUCKET = 64  # row lengths are rounded up to a multiple of this at least (`padding.width`)


@functools.partial(jax.jit, static_argnames="graphdef")
def _score(graphdef: Any, params: Any, token_ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    return token_logprobs_and_entropy(nnx.merge(graphdef, params), token_ids, mask)


def score_outputs(
    model: Any, outputs: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int = 1
) -> list[tuple[list[float], list[float]]]:
    """Log-prob and entropy of every output token.

    Entry t is log p(y_t | prompt, y_<t) and the entropy of that distribution: temperature 1, full vocabulary, nats.

    Args:
      model: a Decoder.
      outputs: (prompt ids, output ids) of each row, neither of them empty. They go through the model in
        groups of similar length.
      rows: how many rows other calls have: fewer outputs are padded up to as many, so that one program serves
        all calls.

    Returns:
      For each row its log-probs and entropies, aligned with the output ids.

    Raises:
      UserError: the model's logits hold a NaN.
    """
    whole = [[*prompt, *output] for prompt, output in outputs]
    spans = [slice(len(p) - 1, len(p) + len(y) - 1) for p, y in outputs]
    graphdef, params = nnx.split(model)
    scores: list[Any] = [None] * len(whole)
    for columns, most, part in groups(
        list(map(len, whole)), _BUCKET, max(rows, len(whole)), batch_ways(mesh_of(model))
    ):
        token_ids, mask = padded_rows([whole[i] for i in part], columns, most)
        logprob, entropy = to_host(_score(graphdef, params, token_ids, mask))
        for row, i in enumerate(part):
            scores[i] = logprob[row, spans[i]], entropy[row, spans[i]]
    for row, values in enumerate(scores):
        if np.isnan(values).any():
            raise UserError(
                f"output {row} of {len(outputs)}: the model's logits held no finite value or a NaN; check its weights"
            )
    return [(values.tolist(), entropies.tolist()) for values, entropies in scores]
