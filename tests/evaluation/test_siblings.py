"""Digests of prefixes against the prefixes themselves."""

import dataclasses

import numpy as np

from caspo_jax.evaluation.confidence_items import confidence_items
from caspo_jax.evaluation.siblings import prefix_digests
from caspo_jax.evaluation.tables import tabulate
from caspo_jax.steps import segment_trace
from caspo_jax.types import Step, Trace

SPELLED = [b"a", b"b", b"\n\n", b"c"]


def numbered(keys):
    """The group of each item, numbered in the order of their first."""
    seen: dict = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def random_traces(rng):
    """Traces of few questions that share prefixes of every length: each begins like one before it."""
    traces = []
    for i in range(60):
        begin = traces[rng.integers(len(traces))].token_ids if traces and i % 5 else ()
        kept = begin[: rng.integers(len(begin) + 1)]
        more = rng.choice(4, rng.integers(1, 20), p=[0.3, 0.2, 0.3, 0.2])
        ids = (*kept, *map(int, more))
        n = len(ids)
        stats = {"entropy": tuple(rng.random(n)), "logprob": tuple(-rng.random(n))}
        bare = Trace(f"t{i}", f"q{i % 3}", "1", None, (0,), ids, "", "eos", "1", True, **stats)
        trace = segment_trace(bare, SPELLED, confidence="mean_logprob")
        verdicts = rng.choice(["correct", "wrong", "unknown"], len(trace.steps))
        steps = tuple(dataclasses.replace(s, verdict=str(v)) for s, v in zip(trace.steps, verdicts))
        traces.append(dataclasses.replace(trace, steps=steps))
    return traces


def test_steps_of_one_digest_are_steps_of_one_prefix():
    traces = random_traces(np.random.default_rng(0))
    whole = [(t.question, t.token_ids[: s.token_start]) for t in traces for s in t.steps]
    digests = [d for t in traces for d in prefix_digests(t, t.question)]
    assert numbered(digests) == numbered(whole)
    assert max(whole.count(key) for key in whole) > 4  # of several traces
    assert len({len(ids) for _, ids in whole}) > 10
    judged = [s.verdict != "unknown" and s.entropy is not None for t in traces for s in t.steps]
    expected = numbered([key for key, counts in zip(whole, judged, strict=True) if counts])
    assert tabulate(traces, [t.question for t in traces]).step_prefix.tolist() == expected
    assert numbered(confidence_items(traces, SPELLED)[0].prefix.tolist()) == expected


def test_steps_may_stand_in_any_order():
    def digests(*starts):
        steps = tuple(Step(0, 0, start, start, "") for start in starts)
        return prefix_digests(Trace("t", None, None, None, (), (5, 6, 7), "", "eos", steps=steps), "q")

    assert digests(2, 0, 2, 3) == [digests(2)[0], digests(0)[0], digests(2)[0], digests(3)[0]]
    assert len(set(digests(0, 1, 2, 3))) == 4
