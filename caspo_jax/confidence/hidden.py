"""Confidence from hidden states: the `hidden` estimator of faithful confidence (RCC)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from caspo_jax.errors import UserError

_TIE = 1e-12  # an attention of exactly mu (two identical tokens, mu = 1/2) must not hang on a rounding


def rcc(
    hidden: Any,
    prompt_length: int,
    step_lengths: Sequence[int],
    top1_prob: Any,
    mu: float = 0.5,
    delta: float = 0.4,
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Step and running confidence of one trace from its last-layer hidden states.

    With E_i the states of step i and E_{-1} those of the prompt: A = softmax_rows(E_{i-1} E_i^T / sqrt(E)),
    W = 1[A >= mu], r = W c_i with c_i the top-1 probabilities of step i's tokens, q_i = mean of the
    non-zero r (0 if none); p_0 = q_0, p_i = delta q_i + (1 - delta) p_{i-1}. The trace's score is p[-1].

    Args:
      hidden: [P + R, E] states of the last layer, prompt then response. As published they are taken
        *before* the final norm (`hidden_states(..., final_norm=False)`); the estimator depends on their scale.
      prompt_length: P.
      step_lengths: [S] tokens of each step, in order, summing to R.
      top1_prob: [R] probability of the most likely token at each response token (not the sampled one's).
      mu: threshold on the attention weights.
      delta: weight of the newest step in the running confidence.

    Returns:
      (q, p), NumPy float64 [S] each; (None, None) if the prompt is empty, for q_0 is then undefined.

    Raises:
      UserError: lengths that do not add up, an empty step.

    Source: arXiv 2606.03969. Blocks are step by step: no T x T matrix is built.
    """
    states = np.asarray(hidden, dtype=np.float64)
    top1 = np.asarray(top1_prob, dtype=np.float64)
    lengths = [int(n) for n in step_lengths]
    _check(states, prompt_length, lengths, top1)
    if prompt_length == 0:
        return None, None
    ends = np.cumsum([prompt_length, *lengths])
    scale = 1.0 / np.sqrt(states.shape[1])
    q = np.zeros(len(lengths))
    p = np.zeros(len(lengths))
    previous = states[:prompt_length]
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        current = states[start:end]
        scores = previous @ current.T * scale
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        r = (weights >= mu - _TIE) @ top1[start - prompt_length : end - prompt_length]
        q[i] = r[r != 0].mean() if np.any(r != 0) else 0.0
        p[i] = q[i] if i == 0 else delta * q[i] + (1.0 - delta) * p[i - 1]
        previous = current
    return q, p


def _check(states: np.ndarray, prompt_length: int, lengths: list[int], top1: np.ndarray) -> None:
    if states.ndim != 2 or prompt_length < 0 or prompt_length > len(states):
        raise UserError(
            f"rcc: hidden of shape {states.shape} and prompt_length {prompt_length}: expected [P + R, E]"
        )
    if any(n < 1 for n in lengths):
        raise UserError(f"rcc: step_lengths {lengths} hold an empty step; leave it out")
    response = len(states) - prompt_length
    if sum(lengths) != response or top1.shape != (response,):
        raise UserError(
            f"rcc: hidden has {response} response tokens, step_lengths sum to {sum(lengths)} and top1_prob has "
            f"shape {top1.shape}; all three must agree"
        )
