"""From a real (random) checkpoint to pairs: sampler, segmentation, verifier and competitors agree."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from caspo_jax import padding
from caspo_jax.models import load_pretrained, token_bytes
from caspo_jax.preferences import PairConfig, build_candidates, by_model, select_pairs, tree_traces
from caspo_jax.preferences.by_model import policy_competitors
from caspo_jax.records import trace_from_record
from caspo_jax.sampling import CatConfig, SampleConfig, explore, generate
from caspo_jax.steps import ExactChecker, annotate_traces
from caspo_jax.store import load_records
from caspo_jax.training.stages import Policy, sample_stage
from caspo_jax.types import Question

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen3_tied_fp32"
DELIMITER = "e"  # frequent enough for a random model


@pytest.fixture(scope="module")
def policy():
    return load_pretrained(str(GOLDEN))


@pytest.fixture(scope="module")
def vocabulary(policy):
    model, tokenizer = policy
    return token_bytes(tokenizer, model.config.vocab_size)


def by_length(question, prefix, step, last):
    return "correct" if len(step) % 2 else "wrong"


VERIFIER = ExactChecker(by_length)


@pytest.fixture(scope="module")
def traces(policy):
    config = SampleConfig(max_new_tokens=24, num_samples=6, step_delimiter=DELIMITER)
    return generate(*policy, [Question(id="q", prompt_ids=(5, 6, 7))], config, jax.random.key(0))


def test_segmentation_is_the_samplers(traces, vocabulary):
    done = annotate_traces(traces, vocabulary, delimiter=DELIMITER)
    assert sum(len(t.steps) for t in done) > 6
    for ours, theirs in zip(done, traces):
        assert ours.text == theirs.text
        for a, b in zip(ours.steps, theirs.steps, strict=True):
            assert (a.start, a.end, a.token_start, a.token_end) == (
                b.start,
                b.end,
                b.token_start,
                b.token_end,
            )
            assert a.entropy == pytest.approx(b.entropy, rel=1e-5)
            if b.confidence is not None:
                assert a.confidence == pytest.approx(b.confidence, rel=1e-4)


@pytest.mark.parametrize("batch_size", [8, None])
def test_competitors_follow_the_model(policy, traces, vocabulary, batch_size):
    model, tokenizer = policy
    annotated = annotate_traces(traces, vocabulary, delimiter=DELIMITER, verifier=VERIFIER)
    candidates, _ = build_candidates(annotated)
    maker = policy_competitors(
        model, tokenizer, VERIFIER, delimiter=DELIMITER, max_new_tokens=16, batch_size=batch_size
    )
    config = PairConfig(tau_quantile=1.0, kinds=("low_confidence_correct",), competitor="token")
    pairs, _ = select_pairs(candidates, config, competitors=maker)
    assert pairs
    for pair in pairs:
        candidate = next(
            c for c in candidates if (c.prefix_ids, c.token_ids) == (pair.prefix_ids, pair.chosen_ids)
        )
        at = len(pair.rejected_ids) - 1
        assert pair.rejected_ids[:at] == pair.chosen_ids[:at]
        assert candidate.entropy[at] == max(
            h for h, t in zip(candidate.entropy, candidate.token_ids) if vocabulary[t].strip(b"e")
        )
        context = pair.prompt_ids + pair.prefix_ids + pair.rejected_ids[:at]
        logits = np.array(model(np.asarray([context], np.int32)))[0, -1]
        logits[pair.chosen_ids[at]] = -np.inf
        assert logits[pair.rejected_ids[at]] >= logits.max() - 1e-4


def test_of_long_contexts_few_are_read_at_once(policy, monkeypatch):
    model, tokenizer = policy
    maker = policy_competitors(model, tokenizer, VERIFIER, delimiter=DELIMITER)
    contexts = [tuple(5 + i % 50 for i in range(n)) for n in (60, 9, 40, 33)]
    whole = maker.other_token(contexts, [0] * 4)
    seen, pad = [], by_model.padded_rows
    monkeypatch.setattr(by_model, "padded_rows", lambda *rows: seen.append(rows[1:]) or pad(*rows))
    monkeypatch.setattr(padding, "MOST_TOKENS", 128)
    assert maker.other_token(contexts, [0] * 4) == whole
    assert seen == [(64, 2), (64, 2)]


def test_a_long_context_leaves_others_their_room(policy):
    model, tokenizer = policy
    maker = policy_competitors(model, tokenizer, VERIFIER, delimiter=DELIMITER, max_new_tokens=32)
    limit = model.config.context
    shorter, longer = (tuple(5 + i % 50 for i in range(limit - room)) for room in (31, 1))
    (alone,) = maker.complete([shorter])
    assert maker.complete([shorter, longer])[0] == alone
    assert len(alone[0]) == 31 or alone[1]


@pytest.mark.slow
def test_whole_competitors_are_single_closed_steps(policy, traces, vocabulary):
    model, tokenizer = policy
    annotated = annotate_traces(traces, vocabulary, delimiter=DELIMITER, verifier=VERIFIER)
    candidates, _ = build_candidates(annotated)
    maker = policy_competitors(
        model, tokenizer, VERIFIER, delimiter=DELIMITER, max_new_tokens=16, batch_size=8
    )
    pairs, counts = select_pairs(candidates, PairConfig(tau_quantile=1.0), competitors=maker)
    assert counts["attempts_low_confidence_correct"] > 0
    for pair in pairs:
        assert by_length(None, "", pair.rejected, False) == "wrong"
        assert DELIMITER not in pair.rejected
        spelled = b"".join(vocabulary[t] for t in pair.rejected_ids)
        assert DELIMITER.encode() in spelled or pair.ends_trace[1]


def test_what_an_exploration_left_open_is_kept(policy, tmp_path):
    config = CatConfig(
        num_branches=4,
        root_branches=2,
        num_answers=1,
        sample=SampleConfig(max_new_tokens=24, step_delimiter=DELIMITER, stop=("a",)),
    )
    questions = [Question(id=f"q{i}", prompt_ids=(5, 6, 7 + i), gold="x") for i in range(2)]
    source = Policy.load(GOLDEN)
    output = sample_stage(
        source,
        questions,
        tmp_path / "traces.jsonl",
        config,
        strategy="explore",
        answers=tmp_path / "answers.jsonl",
        extract=lambda text: text,
        equal=lambda gold, answer: False,
    )
    traces = load_records(output, trace_from_record)
    results = explore(*policy, questions, config, jax.random.key(0))
    for question, result in zip(questions, results, strict=True):
        mine = [t for t in traces if t.id.startswith(question.id)]
        assert [t.id for t in mine] == [f"{question.id}/{i}" for i in range(len(mine))]
        finished = mine[: len(result.paths)]
        assert [t.token_ids for t in finished] == [t.token_ids for t in result.paths]
        assert all(t.correct is False for t in finished)
        left = mine[len(finished) :]
        leaves = tree_traces(result.tree, question, source.token_bytes)
        assert {t.token_ids for t in left} | {t.token_ids for t in finished} == {t.token_ids for t in leaves}
        assert finished
        assert left
        assert all((t.finish_reason, t.answer, t.correct) == ("budget", None, None) for t in left)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert all(set(a["votes"]) <= {p.text for p in r.paths} for a, r in zip(answers, results, strict=True))


@pytest.mark.slow
def test_every_leaf_of_a_tree_is_a_trace(policy, vocabulary):
    config = CatConfig(
        num_branches=4,
        expand=2,
        num_answers=1,
        sample=SampleConfig(max_new_tokens=24, step_delimiter=DELIMITER),
    )
    question = Question(id="q", prompt_ids=(5, 6, 7))
    (result,) = explore(*policy, [question], config, jax.random.key(1))
    leaves = tree_traces(result.tree, question, vocabulary)
    parents = {node.parent for node in result.tree.nodes}
    assert len(leaves) <= sum(i not in parents for i in range(len(result.tree.nodes)))
    assert {p.token_ids for p in result.paths} <= {t.token_ids for t in leaves}
    assert all(len(t.token_ids) == len(t.entropy) == len(t.logprob) for t in leaves)
    annotated = annotate_traces(leaves, vocabulary, delimiter=DELIMITER, verifier=VERIFIER)
    steps = {
        (t.token_ids[: s.token_start], t.token_ids[s.token_start : s.token_end])
        for t in annotated
        for s in t.steps
    }
    candidates, counts = build_candidates(annotated)
    assert {(c.prefix_ids, c.token_ids) for c in candidates} <= steps
    assert len(candidates) == counts["steps"] - counts["unfinished"] - counts["empty"]
