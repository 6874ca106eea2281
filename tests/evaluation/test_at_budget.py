"""What CaT is held against, with a sampler and a search that are made up: who is asked what, and at which budget."""

import dataclasses

import jax
import numpy as np
import pytest

from caspo_jax.evaluation.strategies import at_budget
from caspo_jax.evaluation.strategies.at_budget import StrategyConfig, run_all
from caspo_jax.sampling import CatConfig, SampleConfig
from caspo_jax.types import CatResult, CatTree, Question, Trace

QUESTIONS = [Question("p", "p", gold="1"), Question("q", "q", gold="2")]
# Of each question three samples, (answer, tokens, path confidence): the first is right and the surest of all.
POOL = {
    "p": [("1", 2, 0.9), ("0", 4, 0.8), ("0", 6, 0.8)],
    "q": [("2", 2, 0.9), ("0", 4, 0.8), ("0", 6, 0.8)],
}


def trace(question, answer, tokens, confidence):
    ids = tuple(range(tokens)) if confidence == 0.9 else tuple(range(tokens, 0, -1))
    return Trace(
        question, question, None, None, (0,), ids, answer, "eos", path_confidence=confidence, logprob=(np.log(confidence),) + (0.0,) * (tokens - 1)
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """The calls of the sampler and of the search."""
    calls = []

    def generate(model, tokenizer, questions, config, key, **run):
        calls.append(("generate", config, run.get("step_confidence"), jax.random.key_data(key).tolist()))
        if config.temperature == 0:
            return [trace(q.id, "1", 20, 0.5) for q in questions]
        return [trace(q.id, *sample) for q in questions for sample in POOL[q.id][: config.num_samples]]

    def cat_search(model, tokenizer, questions, config, key, **run):
        calls.append(("cat", config, None, jax.random.key_data(key).tolist()))
        tree = CatTree("", (0,), (), (0, 0), None)
        return [CatResult(q.id, "2", (), tree, tokens) for q, tokens in zip(questions, (7, 5), strict=True)]

    monkeypatch.setattr(at_budget, "generate", generate)
    monkeypatch.setattr(at_budget, "cat_search", cat_search)
    return calls


def same(gold, answer):
    """Asked the right way round."""
    assert gold in ("1", "2")
    return gold == answer


CAT = CatConfig(num_branches=3, sample=SampleConfig(temperature=0.4, max_new_tokens=9), threshold=0.3)


def test_votes_have_the_tokens_of_cat_and_samples_of_their_own_temperature(asked):
    config = StrategyConfig(vote_temperature=0.9, pool=3, gamma=25.0, cat=CAT)
    kept = []
    found = run_all(None, None, QUESTIONS, config, jax.random.key(0), lambda t: t, same, kept.extend)
    greedy, cat, paper, pool = asked
    assert (greedy[1].temperature, greedy[1].max_new_tokens) == (0.0, 9)
    assert cat[1] == CAT
    assert paper[1] == dataclasses.replace(CAT, step_confidence="entropy", prune="path")
    assert cat[3] == paper[3] != pool[3]  # the same draws for both searches, others for the samples
    assert pool[1] == dataclasses.replace(CAT.sample, temperature=0.9, num_samples=3)
    assert pool[2] == "mean_logprob"
    assert len(kept) == 2  # not those of the published search
    assert found["greedy"].correct.tolist() == [1, 0]
    assert found["greedy"].tokens.tolist() == [20, 20]
    assert found["cat"].correct.tolist() == found["cat_paper"].correct.tolist() == [0, 1]
    assert found["cat"].tokens.tolist() == [7, 5]
    # Six tokens a question: two samples each, of 2 + 4 tokens.
    for name, right in (("majority", [1, 1]), ("confidence_vote", [1, 1]), ("sequence_vote", [1, 1])):
        assert found[name].tokens.tolist() == [6, 6], name
        assert found[name].correct.tolist() == right, name
        assert found[name].settings["samples_per_question"] == 2.0
        assert found[name].settings["temperature"] == 0.9
    assert found["confidence_vote"].settings["gamma"] == 25.0
    assert found["self_consistency"].tokens.tolist() == [12, 12]
    assert found["self_consistency"].correct.tolist() == [0, 0]  # two of three say otherwise


def test_gamma_is_of_the_confidence_vote_alone(asked):
    wide = StrategyConfig(pool=3, gamma=25.0, published=False, cat=CAT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at_budget, "matched_counts", lambda pool, budget: np.full(len(pool), 3))
        found = run_all(None, None, QUESTIONS, wide, jax.random.key(0), lambda t: t, same)
    assert found["confidence_vote"].correct.tolist() == [1, 1]  # .9^25 is more than twice .8^25
    assert found["majority"].correct.tolist() == [0, 0]
    assert "cat_paper" not in found


def test_a_search_that_is_as_published_is_run_once(asked):
    paper = dataclasses.replace(CAT, step_confidence="entropy", prune="path")
    found = run_all(
        None, None, QUESTIONS, StrategyConfig(pool=3, cat=paper), jax.random.key(0), lambda t: t, same
    )
    assert "cat_paper" not in found
    assert [call[0] for call in asked] == ["generate", "cat", "generate"]
