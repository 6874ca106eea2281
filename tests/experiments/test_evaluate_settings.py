"""What `evaluate`, `calibrate` and `audit` refuse, and the settings that `evaluate` makes of its flags."""

import dataclasses
import functools
import json
import types
from pathlib import Path

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks import get_benchmark
from caspo_jax.evaluation.strategies import Settings
from caspo_jax.models import RopeConfig
from caspo_jax.records import question_to_record
from caspo_jax.sampling import CatConfig, SampleConfig
from caspo_jax.tasks import get_task
from caspo_jax.types import Question
from experiments import benchmark_source, evaluate_settings
from experiments.evaluate import joined
from experiments.evaluate_run import cut, even_groups
from experiments.evaluate_settings import restored
from tests.shapes import small_shape

TASK = get_task("graph")
FIXTURES = Path(__file__).parents[1] / "evaluation" / "benchmarks" / "fixtures"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("", "no questions"),
        ('{"id": "a", "question": "x"}', "no gold answer"),
        ('{"id": "a", "question": "x", "answer": ""}', "questions.jsonl:1: question 'a' has no gold answer"),
        ('{"id": "a", "gold": "1"}', "questions.jsonl:1"),
        ("{", "questions.jsonl:1"),
    ],
)
@pytest.mark.parametrize("name", ["evaluate", "calibrate", "audit"])
def test_bad_questions_are_one_line(program, tmp_path, name, line, word):
    path = tmp_path / "questions.jsonl"
    path.write_text(line)
    flags = {"model": TASK.policy_path, "input": path}
    flags |= {"output": tmp_path / "cal.json"} if name == "calibrate" else {"out_dir": tmp_path / "out"}
    code, _, err = program(name, **flags)
    assert (code, err.count("\n")) == (1, 1)
    assert word in err


def test_bad_traces_answers_and_alpha(program, tmp_path):
    model = TASK.policy_path
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "answers.jsonl").write_text('{"benchmark": "graph"}\n')
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "answers.jsonl.partial").write_text("")
    good = {"model": model, "out_dir": tmp_path / "out"}
    for name, flags, word in (
        ("evaluate", good | {"traces": tmp_path / "empty.jsonl"}, "no traces"),
        ("evaluate", good | {"traces": tmp_path / "nowhere.jsonl"}, "nowhere.jsonl"),
        ("evaluate", {"compare": f"{tmp_path / 'unfinished'},{tmp_path}"}, "has not ended"),
        ("evaluate", {"compare": f"{tmp_path / 'nowhere'},{tmp_path}"}, "nowhere"),
        ("evaluate", {"compare": f"{tmp_path},{tmp_path}"}, "answers.jsonl:1"),
        ("evaluate", good | {"benchmarks": "graph", "cat_sizes": "2,many"}, "--cat_sizes=2,many"),
        ("evaluate", good | {"benchmarks": "graph", "cat_sizes": "0"}, "--cat_sizes=0"),
        ("evaluate", good | {"benchmarks": "graph", "temperature": 0}, "--temperature=0"),
        (
            "calibrate",
            {"model": model, "input": tmp_path, "output": tmp_path / "c.json", "alpha": 0},
            "--alpha=0",
        ),
        ("audit", good | {"input": tmp_path, "calibration": tmp_path / "answers.jsonl"}, "answers.jsonl"),
    ):
        code, _, err = program(name, **flags)
        assert (code, err.count("\n")) == (1, 1), err
        assert word in err


@pytest.mark.parametrize(
    "rope, room",
    [(RopeConfig(), 44), (RopeConfig("yarn", factor=4.0, original_max_position_embeddings=64), 236)],
)
def test_the_default_length_is_half_of_what_the_context_leaves_and_is_said(monkeypatch, capsys, rope, room):
    monkeypatch.setattr(evaluate_settings, "FLAGS", types.SimpleNamespace(max_new_tokens=None))
    config = small_shape(max_position_embeddings=64, rope=rope)
    policy = types.SimpleNamespace(tokenizer=None, model=types.SimpleNamespace(config=config))
    found = evaluate_settings.default_max_new_tokens(policy, [Question("q", prompt_ids=(1,) * 20)])
    assert found == {"max_new_tokens": room // 2}
    assert (
        f"--max_new_tokens={room // 2}, as none is given: half of the {room} tokens"
        in capsys.readouterr().out
    )


def test_settings_that_nobody_chose_are_said(monkeypatch, capsys):
    """A real benchmark has no questions to choose them on: `--strategies=all` would show a CaT that never prunes."""
    flags = types.SimpleNamespace(tune=64)
    monkeypatch.setattr(evaluate_settings, "FLAGS", flags)
    untuned = functools.partial(evaluate_settings.say_untuned, ["math500", "gsm8k"])
    untuned(Settings(), ("greedy", "cat"))
    assert capsys.readouterr().out.startswith("math500, gsm8k: without --tune_input ")
    for settings, strategies in ((Settings(), ["greedy"]), (Settings(cat=CatConfig(threshold=0.5)), ["cat"])):
        untuned(settings, strategies)
        assert "never prunes" not in capsys.readouterr().out
    untuned(Settings(), ["cat"])
    assert "cat never prunes" in capsys.readouterr().out
    evaluate_settings.say_untuned([], Settings(), ["cat"])
    flags.tune = 0
    untuned(Settings(), ["cat"])
    assert capsys.readouterr().out == ""


def test_bad_flags(program, tmp_path):
    for flags, word in (
        ({}, "--model"),
        ({"model": TASK.policy_path}, "--out_dir"),
        ({"model": TASK.policy_path, "out_dir": tmp_path}, "--benchmarks"),
        (
            {"model": TASK.policy_path, "out_dir": tmp_path, "benchmarks": "graph", "strategies": "nothing"},
            "nothing",
        ),
        ({"model": TASK.policy_path, "out_dir": tmp_path, "benchmarks": "nowhere"}, "nowhere"),
    ):
        code, _, err = program("evaluate", **flags)
        assert code == 1
        assert word in err
        assert err.count("\n") == 1


def test_what_cannot_be_run_is_found_before_anything_is_decoded_or_written(
    program, write, monkeypatch, tmp_path
):
    """Else the manifests that are left behind refuse the corrected command."""
    monkeypatch.setattr(
        "caspo_jax.evaluation.strategies.single.generate", lambda *a, **k: pytest.fail("decoded")
    )
    flags = {"model": TASK.policy_path, "out_dir": tmp_path / "out", "strategies": "greedy", "tune": 0}
    flags |= {"max_new_tokens": 16}
    code = {"benchmarks": "humaneval", "data": f"humaneval={FIXTURES}"}
    long = {"id": "long", "question": "a = 1; " * 600, "gold": "1"}
    asked = write("long.jsonl", [question_to_record(TASK.questions("test", 1, seed=0)[0]), long])
    short = write("short.jsonl", [question_to_record(TASK.questions("test", 1, seed=0)[0])])
    for given, word in (
        (code, "--allow_code_execution"),
        ({"input": asked}, "question 'long'"),
        ({"input": short, "tune": 1, "tune_input": write("tune.jsonl", [long])}, "question 'long'"),
    ):
        status, _, err = program("evaluate", **(flags | given))
        assert (status, err.count("\n")) == (1, 1), err
        assert word in err
        assert not (tmp_path / "out").exists()


def test_settings_are_not_chosen_on_the_questions_they_are_reported_on(program, write, tmp_path):
    asked = TASK.questions("test", 6, seed=0)
    reported = write("reported.jsonl", [question_to_record(q) for q in asked[:4]])
    tune = [question_to_record(dataclasses.replace(q, id=f"tune/{q.id}")) for q in asked[2:]]
    flags = {
        "model": TASK.policy_path,
        "input": reported,
        "out_dir": tmp_path / "out",
        "strategies": "greedy",
    }
    flags |= {"max_new_tokens": 32, "tune_input": write("tune.jsonl", tune)}
    code, _, err = program("evaluate", **flags)
    assert (code, err.count("\n")) == (1, 1), err
    assert "2 of the 4 questions that settings are chosen on are among the 4 of input" in err
    assert not (tmp_path / "out").exists()


def test_settings_are_chosen_as_the_benchmark_asks_and_scores(monkeypatch):
    asked = Question("a", "What is half of one?", gold=r"\frac{1}{2}")
    monkeypatch.setattr(
        benchmark_source.common, "load_questions", lambda path, need_gold, instruct: [asked] * 3
    )
    math = get_benchmark("math500")
    tune = benchmark_source.TuneBenchmark(math, "tune.jsonl")
    (question, _) = tune.load(limit=2)
    assert tune.prompt(question) == math.prompt(asked) != asked.question
    assert tune.extract(r"It is \boxed{0.5}.") == "0.5"
    assert tune.score("0.5", question) is True
    assert tune.equal("0.5", "1/2")
    choices = benchmark_source.TuneBenchmark(get_benchmark("race"), "tune.jsonl")
    with pytest.raises(UserError, match=r"tune\.jsonl: question 'a' has no field 'options'"):
        choices.prompt(asked)


def test_even_groups_and_compare_arguments():
    assert [len(g) for g in even_groups(list(range(200)), 128)] == [100, 100]
    assert [len(g) for g in even_groups(list(range(5)), 8)] == [5]
    assert joined(["evaluate", "--compare", "a", "b", "--quiet"]) == ["evaluate", "--compare=a,b", "--quiet"]
    assert joined(["evaluate", "--compare=a,b"]) == ["evaluate", "--compare=a,b"]


@pytest.mark.parametrize(
    ("count", "sizes"), [(200, [100, 100]), (101, [51, 50]), (99, [99]), (900, [225] * 4), (1, [1])]
)
def test_there_are_two_groups_where_one_of_them_can_be_timed_without_compilation(count, sizes):
    parts, of = cut(range(count), 256)
    assert ([len(part) for part in parts], of) == (sizes, f"-of-{len(sizes)}")
    assert [q for part in parts for q in part] == list(range(count))


@pytest.mark.parametrize(
    ("samples", "new_tokens", "group"), [(16, 160, 256), (16, 1024, 256), (16, 8192, 64), (64, 32768, 16)]
)
def test_few_questions_of_many_long_samples_are_one_group(monkeypatch, samples, new_tokens, group):
    """A killed run loses a group: 256 questions with 64 samples of 15,000 tokens are days, and 25 GB on the host."""
    flags = types.SimpleNamespace(group=None)
    monkeypatch.setattr(evaluate_settings, "FLAGS", flags)
    settings = Settings(samples=samples, sample=SampleConfig(max_new_tokens=new_tokens))
    assert evaluate_settings.group_size(settings) == group
    flags.group = 100
    assert evaluate_settings.group_size(settings) == 100


@pytest.mark.parametrize(("new_tokens", "window"), [(64, 16), (256, 16), (1024, 64), (32768, 2048)])
def test_deepconf_looks_at_a_window_of_the_length_that_outputs_may_have(monkeypatch, new_tokens, window):
    """Of sixteen tokens it would be noise on thoughts of thousands; the paper has 2,048 for outputs of some 32,000."""
    flags = types.SimpleNamespace(
        temperature=0.7, self_evaluation="confidence", num_samples=4, time_votes=False, cat_sizes=["2"]
    )
    monkeypatch.setattr(evaluate_settings, "FLAGS", flags)
    monkeypatch.setattr(evaluate_settings, "default_max_new_tokens", lambda policy, questions: {})
    monkeypatch.setattr(
        evaluate_settings.common, "sample_config", lambda *a, **k: SampleConfig(max_new_tokens=new_tokens)
    )
    monkeypatch.setattr(
        evaluate_settings.common, "cat_config", lambda policy, sample: CatConfig(sample=sample)
    )
    assert evaluate_settings.base_settings(None, []).window == window


def test_settings_come_back_from_their_file():
    made = Settings(
        samples=3, beams=((1, 2),), cat=CatConfig(threshold=0.3, sample=SampleConfig(stop=("x",)))
    )
    assert restored(Settings(), json.loads(json.dumps(dataclasses.asdict(made)))) == made
