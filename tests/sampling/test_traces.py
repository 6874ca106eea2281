"""Paths of a tree as traces."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
from test_decided import QUESTION, A, hand_made
from toy_model import VOCABULARY

from caspo_jax.sampling import state as codes
from caspo_jax.sampling.traces import build_trace
from caspo_jax.types import FinishReason


@pytest.mark.parametrize(
    ("status", "reason", "finish"),
    [
        (codes.FINISHED, codes.EOS, "eos"),
        (codes.FINISHED, codes.STOP, "stop"),
        (codes.FINISHED, codes.LENGTH, "length"),
        (codes.PRUNED, codes.THRESHOLD, "pruned"),
        (codes.EXPIRED, codes.BUDGET, "budget"),
        (codes.EXPIRED, codes.ANSWERS, "budget"),
        (codes.EXPIRED, codes.DECIDED, "budget"),
    ],
)
def test_why_a_path_ended_is_said_in_the_words_of_traces(status, reason, finish):
    tree, _ = hand_made((status, -1.0, 0.5, A))
    tree = dataclasses.replace(tree, reason=np.array([reason]))
    trace = build_trace(tree, 0, QUESTION, (0,), VOCABULARY, "\n\n", "cat")
    assert trace.finish_reason == finish
    assert finish in get_args(FinishReason)
