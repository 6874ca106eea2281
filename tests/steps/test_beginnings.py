"""Prefixes that are cut out of their trace when they are read."""

import dataclasses
import pickle

from caspo_jax.preferences import build_candidates
from caspo_jax.preferences.candidates import filter_candidates
from caspo_jax.steps import VerifyItem, segment_trace, step_items
from caspo_jax.steps.beginnings import Beginning
from caspo_jax.types import Question, Trace

BYTES = [bytes([b]) for b in range(256)]


def long_trace(steps=400, name="t"):
    text = "\n\n".join(f"{i:05d}" for i in range(steps))
    ids = tuple(text.encode())
    trace = Trace(name, "?", None, None, (1,), ids, text, "eos", logprob=(-0.5,) * len(ids))
    return segment_trace(trace, BYTES, confidence="mean_logprob")


def item(prefix, prefix_ids):
    return VerifyItem(Question("q"), prefix, "step", False, prefix_ids=prefix_ids)


def held(value, seen):
    """Characters and tokens that a value keeps in memory, each object once."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, str | tuple):
        return len(value)
    parts = [value.whole] if isinstance(value, Beginning) else getattr(value, "__dict__", {}).values()
    return sum(held(part, seen) for part in parts)


def test_a_beginning_is_read_as_what_it_stands_for():
    cut = item(Beginning("one two", 3), Beginning((7, 8, 9), 2))
    plain = item("one", (7, 8))
    assert (cut.prefix, cut.prefix_ids) == ("one", (7, 8))
    assert cut == plain
    assert repr(cut) == repr(plain)
    assert dataclasses.asdict(cut) == dataclasses.asdict(plain)
    assert dataclasses.replace(cut, step="other").prefix_ids == (7, 8)
    assert pickle.loads(pickle.dumps(cut)) == plain
    assert VerifyItem(Question("q"), "", "s", True).prefix_ids == ()


def test_the_steps_of_a_trace_hold_its_text_and_tokens_once():
    trace = long_trace()
    items = [item for _, item in step_items(trace)]
    candidates, _ = build_candidates([trace])
    assert (
        [i.prefix for i in items]
        == [c.prefix for c in candidates]
        == [trace.text[: step.start] for step in trace.steps]
    )
    assert (
        [i.prefix_ids for i in items]
        == [c.prefix_ids for c in candidates]
        == [trace.token_ids[: step.token_start] for step in trace.steps]
    )
    filter_candidates(candidates)
    for found in (items, candidates):
        seen: set[int] = set()
        # Every step's own text and tokens besides; the prefixes of 400 steps would be 400 times as much.
        assert sum(held(value, seen) for value in found) < 20 * len(trace.text)


def test_places_are_equal_where_prefixes_are():
    (a, b, *_), _ = build_candidates([long_trace(3)])
    (same, *_), _ = build_candidates([long_trace(3, "other")])
    assert {a.place, same.place, b.place} == {a.place, b.place}
    assert a.place != b.place
    assert a.place != a.key
    groups, _ = filter_candidates([a, b, same], allow_flawed_prefix=True)
    assert groups == []  # no verdicts
