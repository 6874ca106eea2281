"""Pair selection by hand-made cases."""

import dataclasses
import tracemalloc

import pytest

from caspo_jax.errors import UserError
from caspo_jax.preferences import Candidate, PairConfig, Rival, build_candidates, select_pairs
from caspo_jax.preferences.selection import select_contrasts
from caspo_jax.types import Question, Step, Trace


def make(text, verdict, confidence, *, question="q", prefix=(), prefix_verdict="correct", ids=None):
    return Candidate(
        question=Question(id=question, question="?", gold="1"),
        prompt="?",
        prompt_ids=(1, 2),
        prefix="".join(map(str, prefix)),
        prefix_ids=tuple(prefix),
        text=text,
        token_ids=tuple(text.encode()) if ids is None else ids,
        verdict=verdict,
        confidence=confidence,
        prefix_verdict=prefix_verdict,
        ends_trace=False,
        is_last=False,
        trace_id=f"{question}/{text}",
        step_index=len(prefix),
    )


WRONG = PairConfig(kinds=("wrong",), tau=0.5)


def test_most_confident_wrong_meets_least_confident_correct():
    pairs, counts = select_pairs(
        [
            make("r1", "correct", 0.6),
            make("w1", "wrong", 0.7),
            make("r2", "correct", 0.3),
            make("w2", "wrong", 0.9),
        ],
        WRONG,
    )
    assert [(p.rejected, p.chosen) for p in pairs] == [("w2", "r2"), ("w1", "r1")]
    assert counts["pairs_wrong"] == counts["attempts_wrong"] == 2
    assert pairs[0].chosen_confidence == 0.3
    assert pairs[0].rejected_verdict == "wrong"


def test_aligned_pairs_are_left_out_unless_asked_for():
    candidates = [make("sure", "correct", 0.9), make("unsure", "wrong", 0.1)]
    pairs, counts = select_pairs(candidates, WRONG)
    assert not pairs
    assert counts["aligned"] == 1
    pairs, _ = select_pairs(candidates, dataclasses.replace(WRONG, include_aligned=True))
    assert len(pairs) == 1


def test_a_pair_on_the_border_is_aligned_only_where_the_wrong_step_is_below_tau():
    def pairs(correct, wrong):
        return len(select_pairs([make("r", "correct", correct), make("w", "wrong", wrong)], WRONG)[0])

    assert (pairs(0.5, 0.4), pairs(0.5, 0.5), pairs(0.49, 0.4), pairs(0.6, 0.5)) == (0, 1, 1, 1)


def test_a_random_pick_is_by_seed_and_prefix():
    found = [
        make(f"{verdict}{i}", verdict, i / 10, prefix=prefix)
        for prefix in ((), (5,))
        for verdict in ("correct", "wrong")
        for i in range(8)
    ]

    def orders(**changes):
        config = dataclasses.replace(WRONG, include_aligned=True, max_pairs_per_prefix=8, **changes)
        pairs, _ = select_pairs(found, config)
        return [[(p.rejected, p.chosen) for p in pairs if p.prefix_ids == prefix] for prefix in ((), (5,))]

    sure = orders()
    assert sure[0] == sure[1] == [(f"wrong{7 - i}", f"correct{i}") for i in range(8)]
    for pick in ("random", "nearest"):
        first, other = orders(pick=pick)
        assert sorted(r for r, _ in first) == sorted(r for r, _ in other) == [f"wrong{i}" for i in range(8)]
        assert first != other
        assert [first, other] == orders(pick=pick)
        assert first != orders(pick=pick, seed=1)[0]
        assert first != sure[0]


def test_a_pair_keeps_what_each_side_is():
    ended = dataclasses.replace(make("w", "wrong", 0.9), ends_trace=True)
    (pair,), _ = select_pairs([make("r", "correct", 0.4), ended], WRONG)
    assert pair.ends_trace == (False, True)
    assert (pair.chosen_verdict, pair.rejected_verdict) == ("correct", "wrong")
    assert (pair.chosen_confidence, pair.rejected_confidence) == (0.4, 0.9)


def test_texts_alike_after_other_tokens_are_other_pairs():
    found = [make("r", "correct", 0.4), make("w", "wrong", 0.9)]
    more = [dataclasses.replace(c, question=Question(id="p"), prompt_ids=(1, 3)) for c in found]
    again = [dataclasses.replace(c, question=Question(id="s")) for c in found]
    pairs, counts = select_pairs([*found, *more, *again], WRONG)
    assert [p.prompt_ids for p in pairs] == [(1, 2), (1, 3)]
    assert counts["duplicate_pair"] == 1


def test_prefixes_never_mix_and_flawed_ones_are_dropped():
    candidates = [
        make("r", "correct", 0.4, prefix=(5,)),
        make("w", "wrong", 0.8, prefix=(6,)),
        make("r2", "correct", 0.4, prefix=(7,), prefix_verdict="wrong"),
        make("w2", "wrong", 0.8, prefix=(7,), prefix_verdict="wrong"),
        make("r3", "correct", 0.4, prefix=(8,), prefix_verdict="unknown"),
    ]
    pairs, counts = select_pairs(candidates, WRONG)
    assert not pairs
    assert (counts["flawed_prefix"], counts["unverified_prefix"], counts["wrong_without_correct"]) == (
        2,
        1,
        1,
    )
    pairs, _ = select_pairs(candidates, dataclasses.replace(WRONG, allow_flawed_prefix=True))
    assert [(p.chosen, p.rejected) for p in pairs] == [("r2", "w2")]


def test_duplicates_and_contradictions():
    candidates = [
        make("r", "correct", 0.4),
        make("r", "correct", 0.4),
        make("r", "unknown", 0.4, ids=(1, 1)),
        make("x", "correct", 0.4),
        make("x", "wrong", 0.4),
        make("w", "wrong", 0.8),
        make("w", "wrong", 0.8),
        make("u", "unknown", 0.8),
        make("n", "correct", None),
    ]
    pairs, counts = select_pairs(candidates, WRONG)
    assert [(p.chosen, p.rejected) for p in pairs] == [("r", "w")]
    assert (counts["duplicate_ids"], counts["duplicate_text"], counts["conflicting_verdict"]) == (2, 1, 2)
    assert (counts["unknown_verdict"], counts["no_confidence"]) == (1, 1)


def test_of_equal_steps_the_one_with_a_verdict_stays_then_the_one_with_a_confidence():
    found = [make("r", "unknown", 0.4), make("r", "correct", None), make("w", "wrong", 0.9)]
    pairs, counts = select_pairs(found, WRONG)
    assert (pairs, counts["duplicate_ids"], counts["no_confidence"]) == ([], 1, 1)
    pairs, counts = select_pairs([*found, make("r", "correct", 0.3)], WRONG)
    assert [(p.chosen, p.chosen_confidence) for p in pairs] == [("r", 0.3)]
    assert counts["duplicate_ids"] == 2


def rivals(texts):
    def competitors(candidates, kind):
        return [Rival(tuple(texts[c.text].encode()), texts[c.text], False, "wrong", None) for c in candidates]

    return competitors


def test_low_confidence_correct_steps_meet_their_competitor():
    config = PairConfig(kinds=("low_confidence_correct",), tau=0.5, max_pairs_per_prefix=1)
    candidates = [make("a", "correct", 0.4), make("b", "correct", 0.2), make("c", "correct", 0.5)]
    pairs, counts = select_pairs(candidates, config, competitors=rivals({"a": "z", "b": "a"}))
    assert [(p.chosen, p.rejected, p.kind) for p in pairs] == [("a", "z", "low_confidence_correct")]
    assert counts["competitor_known_correct"] == 1
    assert counts["attempts_low_confidence_correct"] == 2


def test_no_more_competitors_are_made_than_there_is_room_for():
    config = PairConfig(kinds=("wrong", "low_confidence_correct"), tau=0.9, max_pairs_per_prefix=2)
    found = [make(text, "correct", 0.1 * i) for i, text in enumerate("abcd", 1)]
    asked = []

    def competitors(candidates, kind):
        asked.append([c.text for c in candidates])
        return rivals(dict(zip("abcd", "azyx")))(candidates, kind)

    pairs, counts = select_pairs([*found, make("w", "wrong", 0.95)], config, competitors=competitors)
    assert [(p.chosen, p.rejected) for p in pairs] == [("a", "w"), ("b", "z")]
    assert asked == [["a"], ["b"]]  # one pair is there already, and "a" spells a step that is right
    assert counts["over_limit"] == 2


def test_a_step_dropped_for_contradiction_is_no_rejected_step():
    found = [make("7", "correct", 0.4), make("x", "correct", 0.3), make("x", "wrong", 0.3)]
    config = PairConfig(kinds=("low_confidence_correct",), tau=0.9)
    pairs, counts = select_pairs(found, config, competitors=rivals({"7": "x"}))
    assert pairs == []
    assert counts["competitor_known_correct"] == 1


def test_tau_is_the_quantile_of_what_is_left():
    _, counts = select_pairs(
        [make(str(i), "correct", i / 10) for i in range(5)], PairConfig(kinds=("wrong",), tau_quantile=0.25)
    )
    assert counts["tau"] == pytest.approx(0.1)
    found = [
        make("r", "correct", 0.2),
        make("w", "wrong", 0.8),
        make("v", "wrong", 0.6),
        make("u", "unknown", 0.1),
    ]
    assert select_pairs(found, PairConfig(kinds=("wrong",)))[1]["tau"] == 0.6  # wrong steps too, of a verdict


def test_missing_competitors_are_an_error():
    with pytest.raises(UserError, match="competitors="):
        select_pairs([], PairConfig())


def test_nearest_sibling_is_the_one_that_begins_like_the_wrong_step():
    candidates = [
        make("so c = 59", "correct", 0.1),
        make("so c = 41", "correct", 0.4),
        make("then c = 41", "correct", 0.2),
        make("so c = 42", "wrong", 0.9),
        make("then c = 14", "wrong", 0.8),
    ]
    for seed in range(5):
        pairs, _ = select_pairs(candidates, dataclasses.replace(WRONG, pick="nearest", seed=seed))
        assert {(p.rejected, p.chosen) for p in pairs} == {
            ("so c = 42", "so c = 41"),
            ("then c = 14", "then c = 41"),
        }
    with pytest.raises(UserError, match="nearest"):
        PairConfig(pick="closest")


@pytest.mark.parametrize(
    "field, value",
    [
        ("tau", float("nan")),
        ("tau", float("inf")),
        ("tau", "0.5"),
        ("tau_quantile", 1.5),
        ("max_pairs_per_prefix", 0),
        ("max_pairs_per_prefix", 1.5),
        ("seed", 1.5),
        ("competitor", "word"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"{field}={value!r}"):
        PairConfig(**{field: value})


def test_what_pairs_are_made_of_holds_no_prefix():
    """A thought of 32,000 tokens has a hundred pairs, whose prefixes took 27 MB and more."""
    steps, text, ids = [], "", ()
    for i in range(200):
        own = tuple(range(1000 * i, 1000 * i + 50))
        steps.append(
            Step(len(text), len(text) + 1, len(ids), len(ids) + 50, "a", confidence=0.5, verdict="correct")
        )
        text, ids = text + "a\n\n", ids + own
    candidates, _ = build_candidates([Trace("t", "q", None, "q", (1,), ids, text, "eos", steps=tuple(steps))])
    config = PairConfig(kinds=("low_confidence_correct",), tau=1.0)
    competitors = rivals({"a": "x"})
    tracemalloc.start()
    try:
        contrasts, counts = select_contrasts(candidates, config, competitors=competitors)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(contrasts) == counts["pairs_low_confidence_correct"] == 200
    assert held < 1 << 19
    pairs, again = select_pairs(candidates, config, competitors=competitors)
    assert again == counts
    assert [(p.chosen_ids, p.prefix_ids) for p in pairs] == [
        (c.token_ids, c.prefix_ids) for _, c, _ in contrasts
    ]
