"""A tiny checkpoint with known outputs, for tests that run it whole."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

import caspo_jax as cj

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "qwen3_tied_fp32"
KEY = jax.random.key(3)


def assert_teacher_forced(model, traces):
    """The log-probs of the traces are those of a whole forward pass over prompt and output."""
    rows = [trace.prompt_ids + trace.token_ids for trace in traces]
    ids, mask = np.zeros((len(rows), 64), np.int32), np.zeros((len(rows), 64), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    logprob = np.asarray(cj.token_logprobs(model, ids, mask))
    for i, trace in enumerate(traces):
        start = len(trace.prompt_ids) - 1
        np.testing.assert_allclose(logprob[i, start : start + len(trace.token_ids)], trace.logprob, atol=1e-4)
