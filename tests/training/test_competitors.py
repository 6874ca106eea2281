"""Competitors that outlive the stage that made them."""

from __future__ import annotations

import dataclasses

import pytest

from caspo_jax.errors import UserError
from caspo_jax.preferences import NoCompetitor, Rival
from caspo_jax.preferences.candidates import Candidate
from caspo_jax.training.stages.competitors import kept_competitors
from caspo_jax.types import Question

CANDIDATES = [
    Candidate(
        trace_id=f"q/{i}",
        step_index=0,
        question=Question("q", question="q"),
        prompt="q",
        prompt_ids=(1,),
        prefix="",
        prefix_ids=(),
        text="a",
        token_ids=(2, i),
        verdict="correct",
        confidence=0.5,
        prefix_verdict="correct",
        ends_trace=False,
        is_last=False,
    )
    for i in range(10)
]


class Maker:
    """Rivals and reasons for none in turn; killed after so many parts."""

    def __init__(self, parts=None):
        self.parts, self.made = parts, []

    def __call__(self, candidates, kind):
        if self.parts is not None and len(self.made) == self.parts:
            raise KeyboardInterrupt
        self.made.append([c.token_ids[1] for c in candidates])
        return [
            Rival((c.token_ids[1], 7), f"{kind} {c.trace_id}", c.token_ids[1] == 2, "wrong", None)
            if c.token_ids[1] % 2 == 0
            else NoCompetitor("unfinished")
            for c in candidates
        ]


def test_a_killed_stage_keeps_what_it_had_made(tmp_path):
    output, seen = tmp_path / "pairs.jsonl", []

    def ask(maker, settings=("a",), candidates=CANDIDATES):
        with kept_competitors(
            maker,
            output,
            {"settings": settings},
            batch_size=1,
            overwrite=False,
            progress=lambda *at: seen.append(at),
        ) as make:
            return make(candidates, "step")

    killed = Maker(parts=2)
    with pytest.raises(KeyboardInterrupt):
        ask(killed)
    assert killed.made == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(UserError, match="other settings"):
        ask(Maker(), settings=("b",))
    again, whole = Maker(), Maker()
    assert ask(again) == whole(CANDIDATES, "step")
    assert again.made == [[8, 9]]
    assert seen == [(0, 10), (4, 10), (8, 10), (8, 10), (10, 10)]
    assert list(tmp_path.iterdir()) == []
    # Contexts of about one length go together.
    longer = [dataclasses.replace(c, prefix_ids=(5,) * (9 - i % 4)) for i, c in enumerate(CANDIDATES)]
    sorted_by_length = Maker()
    assert [rival.text for rival in ask(sorted_by_length, candidates=longer) if isinstance(rival, Rival)] == [
        f"step q/{i}" for i in range(0, 10, 2)
    ]
    assert sorted_by_length.made == [[3, 7, 2, 6], [1, 5, 9, 0], [4, 8]]
    # What differs in anything is another competitor.
    other = Maker()
    twice = [CANDIDATES[0], dataclasses.replace(CANDIDATES[0], prefix_ids=(5,)), CANDIDATES[0]]
    assert [rival.text for rival in ask(other, candidates=twice)] == ["step q/0"] * 3
    assert other.made == [[0, 0]]
