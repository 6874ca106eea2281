"""Which steps were sampled from one prefix."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import numpy as np

from caspo_jax.types import Trace


def prefix_digests(trace: Trace, question: Hashable) -> list[bytes]:
    """What each step was sampled from, as a digest [S]: the same for siblings.

    Args:
      trace: with steps.
      question: whatever stands before its tokens, told apart by its `repr`.
    """
    # Of what came before the step before, only the digest's own state is kept: a trace costs what its length is.
    running = hashlib.sha256(repr(question).encode())
    found, at = [b""] * len(trace.steps), 0
    for index, step in sorted(enumerate(trace.steps), key=lambda item: item[1].token_start):
        running.update(np.asarray(trace.token_ids[at : step.token_start], np.int64).tobytes())
        found[index], at = running.digest(), step.token_start
    return found
