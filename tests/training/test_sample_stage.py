"""Questions to traces: what the searches are given."""

import json

import pytest

import caspo_jax as cj
from caspo_jax.errors import UserError
from caspo_jax.tasks import get_task
from caspo_jax.training.stages import Policy, sample_stage


@pytest.mark.parametrize(
    "config, strategy", [(cj.CatConfig(), "sample"), (cj.SampleConfig(), "cat"), (cj.SampleConfig(), "beam")]
)
def test_a_strategy_of_another_config_is_refused(tmp_path, config, strategy):
    with pytest.raises(UserError, match=f"strategy='{strategy}': with a {type(config).__name__}"):
        sample_stage(None, [], tmp_path / "t.jsonl", config, strategy=strategy)
    assert not any(tmp_path.iterdir())


def test_a_search_that_stops_early_reads_answers_as_the_vote_does(tmp_path):
    task = get_task("graph")
    policy = Policy.load(task.policy_path)
    questions = task.questions("test", 4, seed=0)
    config = cj.CatConfig(
        num_branches=4,
        expand=1,
        vote="majority",
        stop_decided=True,
        sample=cj.SampleConfig(max_new_tokens=96, temperature=1.0),
    )

    def tokens(name, extract, equal=None):
        answers = tmp_path / f"{name}.jsonl"
        sample_stage(
            policy,
            questions,
            tmp_path / f"{name}_traces.jsonl",
            config,
            strategy="cat",
            answers=answers,
            extract=extract,
            equal=equal,
        )
        return [json.loads(line)["tokens"] for line in answers.read_text().splitlines()]

    whole = tokens("whole", lambda text: text)
    one = tokens("one", lambda text: "yes")
    alike = tokens("alike", lambda text: text, lambda a, b: True)
    assert one == alike
    assert sum(one) < sum(whole)


def test_without_a_reader_no_trace_has_an_answer(tmp_path):
    """The rounds annotate what they explore: until then the last line is no answer."""
    task = get_task("graph")
    policy = Policy.load(task.policy_path)
    config = cj.CatConfig(num_branches=2, sample=cj.SampleConfig(max_new_tokens=16, temperature=1.0))
    questions = task.questions("test", 2, seed=0)
    for strategy in ("cat", "explore"):
        traces = sample_stage(policy, questions, tmp_path / f"{strategy}.jsonl", config, strategy=strategy)
        found = [json.loads(line) for line in traces.read_text().splitlines()]
        assert [trace["answer"] for trace in found] == [None] * len(found) != []
