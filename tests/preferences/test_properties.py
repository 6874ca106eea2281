"""What holds of the pairs of any candidates."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.preferences import Candidate, NoCompetitor, PairConfig, Rival, select_pairs, verified_rows
from caspo_jax.types import Question

REASONS = (
    "wrong_without_correct",
    "aligned",
    "over_limit",
    "duplicate_pair",
    "competitor_no_entropy",
    "competitor_unfinished",
    "competitor_equal",
    "competitor_correct",
    "competitor_unknown",
    "competitor_known_correct",
)
FILTERS = (
    "flawed_prefix",
    "unverified_prefix",
    "duplicate_ids",
    "duplicate_text",
    "conflicting_verdict",
    "unknown_verdict",
    "no_confidence",
)


@st.composite
def candidates(draw):
    found = []
    for i in range(draw(st.integers(0, 24))):
        question = draw(st.sampled_from("pq"))
        prefix = draw(st.sampled_from([(), (1,), (2,)]))
        text = draw(st.sampled_from(["a", "b", "c", "d", "e", "f", " a"]))
        found.append(
            Candidate(
                question=Question(id=question),
                prompt=question,
                prompt_ids=(ord(question),),
                prefix=str(prefix),
                prefix_ids=prefix,
                text=text,
                token_ids=draw(st.sampled_from([(ord(text[-1]),), (ord(text[-1]), 10)])),
                verdict=draw(st.sampled_from(["correct", "wrong", "correct", "wrong", "unknown"])),
                confidence=draw(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, None, float("nan")])),
                prefix_verdict=draw(st.sampled_from(["correct"] * 8 + ["wrong", "unknown"]))
                if prefix
                else "correct",
                ends_trace=False,
                is_last=False,
                trace_id=str(i),
                step_index=len(prefix),
            )
        )
    return found


configs = st.builds(
    PairConfig,
    tau_quantile=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    kinds=st.sampled_from([("wrong",), ("low_confidence_correct",), ("wrong", "low_confidence_correct")]),
    max_pairs_per_prefix=st.integers(1, 4),
    pick=st.sampled_from(["confident", "random"]),
    allow_flawed_prefix=st.booleans(),
    include_aligned=st.booleans(),
    seed=st.integers(0, 3),
)


def competitors(asked, kind):
    """Any outcome, but a function of the candidate: also rivals equal to siblings, falsely called wrong."""
    outcomes = []
    for c in asked:
        pick = (ord(c.text[-1]) + len(c.prefix_ids)) % 5
        text = "abcdefgh"[(ord(c.text[-1]) * 3) % 8]
        verdict = ("wrong", "wrong", "correct", "unknown")[pick] if pick < 4 else None
        outcomes.append(
            NoCompetitor("unfinished") if verdict is None else Rival((ord(text), 10), text, False, verdict)
        )
    return outcomes


def check(found, config):
    pairs, counts = select_pairs(found, config, competitors=competitors)
    verdicts = {}
    for c in found:
        verdicts.setdefault((c.key, c.text.strip()), set()).add(c.verdict)
    contexts = {(c.prompt_ids, c.prefix_ids) for c in found}
    seen = set()
    per_prefix = {}
    for pair in pairs:
        assert (pair.prompt_ids, pair.prefix_ids) in contexts
        key = (pair.prompt, pair.prompt_ids, pair.prefix_ids)
        chosen = verdicts.get((key, pair.chosen.strip()), set())
        rejected = verdicts.get((key, pair.rejected.strip()), set())
        assert "correct" not in rejected  # never a rejected step that verifies as correct
        assert pair.rejected_verdict == "wrong"
        assert pair.chosen_verdict == "correct"
        assert chosen <= {"correct", "unknown"}
        assert pair.chosen.strip() != pair.rejected.strip()
        assert pair.kind in config.kinds
        identity = (key, pair.chosen.strip(), pair.rejected.strip())
        assert identity not in seen  # no duplicate
        seen.add(identity)
        per_prefix[key] = per_prefix.get(key, 0) + 1
        if pair.kind == "low_confidence_correct":
            assert pair.chosen_confidence < counts["tau"]
        elif not config.include_aligned:
            assert not pair.chosen_confidence >= counts["tau"] > pair.rejected_confidence
        if not config.allow_flawed_prefix:
            group = [c for c in found if c.key == key]
            assert {c.prefix_verdict for c in group} == {"correct"}
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert max(per_prefix.values(), default=0) <= config.max_pairs_per_prefix
    # Everything dropped is counted, once.
    assert sum(counts[f"pairs_{kind}"] for kind in config.kinds) == len(pairs)
    attempts = sum(counts[f"attempts_{kind}"] for kind in config.kinds)
    assert attempts == len(pairs) + sum(counts[reason] for reason in REASONS)
    kept, _ = select_pairs(found, dataclasses.replace(config, kinds=("wrong",), include_aligned=True))
    assert counts["candidates"] == len(found)
    assert counts["usable"] == len(found) - sum(counts[name] for name in FILTERS)
    assert (pairs, counts) == select_pairs(found, config, competitors=competitors)
    return pairs, kept


@settings(max_examples=150, deadline=None)
@given(candidates(), configs)
def test_pairs_of_any_candidates(found, config):
    check(found, config)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(candidates(), configs)
def test_pairs_of_very_many_candidates(found, config):
    check(found, config)


@settings(max_examples=100, deadline=None)
@given(candidates(), configs)
def test_other_prefixes_change_nothing_at_a_fixed_tau(found, config):
    fixed = dataclasses.replace(config, tau=0.5)
    pairs, _ = select_pairs(found, fixed, competitors=competitors)
    alone = []
    for key in dict.fromkeys(c.key for c in found):
        alone += select_pairs([c for c in found if c.key == key], fixed, competitors=competitors)[0]
    assert sorted(p.id for p in alone) == sorted(p.id for p in pairs)


@settings(max_examples=100, deadline=None)
@given(candidates(), st.booleans())
def test_verified_rows_are_distinct_and_correct(found, allow):
    rows, counts = verified_rows(found, allow_flawed_prefix=allow)
    assert len(set(rows)) == len(rows) == counts["verified"]
    right = {(c.prompt_ids + c.prefix_ids, c.token_ids) for c in found if c.verdict == "correct"}
    assert set(rows) <= right
    # Of every text that was called right at a verified prefix, and never wrong, a row, whatever its confidence.
    prefixes, called = {}, {}
    for c in found:
        prefixes.setdefault(c.key, set()).add(c.prefix_verdict)
        called.setdefault((c.key, c.text.strip()), set()).add(c.verdict)
    texts = {
        (c.prompt_ids + c.prefix_ids, c.text.strip())
        for c in found
        if called[c.key, c.text.strip()] - {"unknown"} == {"correct"}
        and (allow or prefixes[c.key] == {"correct"})
    }
    wrong = {key for key, verdicts in called.items() if verdicts - {"unknown"} == {"wrong"}}
    assert counts["wrong"] == sum(allow or prefixes[key] == {"correct"} for key, _ in wrong)
    of_row = {(c.prompt_ids + c.prefix_ids, c.token_ids): c.text.strip() for c in found}
    assert {(context, of_row[context, step]) for context, step in rows} == texts


def test_a_step_of_two_questions_with_one_prompt_is_one_verified_row():
    """Two gold answers make two questions; what the model reads is the same."""
    one = Candidate(
        Question(id="p"), "p", (1,), "", (), "a", (2,), "correct", 0.5, "correct", False, False, "t", 0
    )
    other = dataclasses.replace(one, question=Question(id="q"))
    rows, counts = verified_rows([one, other])
    assert rows == [((1,), (2,))]
    assert counts["verified"] == 1
