"""Flags that programs share: one set of them goes with every stage, and what they leave open is the policy's caspo.json's."""

import importlib
import json
import shutil

import pytest
from absl import flags

from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from tests.experiments.conftest import read
from tests.experiments.test_bad_input import one_line

TASK = get_task("graph")
STAGES = (
    "generate",
    "score",
    "annotate",
    "pairs",
    "train",
    "export",
    "caspo",
    "calibrate",
    "faithfulness",
    "hedge",
)
DECODING = ("generate", "caspo", "calibrate", "audit", "evaluate", "faithfulness", "hedge")


def _taken(program, monkeypatch, name, given):
    monkeypatch.setattr(importlib.import_module(f"experiments.{name}"), "main", lambda: None)
    try:
        program(name, **given)
    except flags.IllegalFlagValueError as error:
        if "must have a value other than None" not in str(
            error
        ):  # a required flag: it is looked for after the others
            raise


def test_stages_and_decoding_programs_take_the_same_flags(program, monkeypatch):
    for name in STAGES:
        _taken(
            program,
            monkeypatch,
            name,
            {"model": "M", "dtype": "float32", "seed": 1, "batch_size": 4, "overwrite": 1},
        )
    decoding = {
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "num_samples": 4,
        "ignore_eos": 1,
    }
    for name in DECODING:
        _taken(program, monkeypatch, name, {**decoding, "step_delimiter": "x"})


def test_samples_is_another_name_of_num_samples(program, monkeypatch):
    monkeypatch.setattr("experiments.faithfulness.main", lambda: None)
    assert program("faithfulness", out_dir="D", samples=3)[0] == 0
    assert flags.FLAGS.num_samples == 3


@pytest.fixture
def other(tmp_path):
    """other(confidence) -> the tiny policy with that one in its caspo.json."""

    def copy(confidence):
        folder = tmp_path / confidence
        shutil.copytree(TASK.policy_path, folder)
        settings = json.loads((folder / "caspo.json").read_text()) | {"confidence": confidence}
        (folder / "caspo.json").write_text(json.dumps(settings))
        return folder

    return copy


@pytest.fixture
def questions(write):
    return write("q.jsonl", [question_to_record(q) for q in TASK.questions("tune", 2, seed=2)])


def test_caspo_json_names_the_confidence_of_annotate_and_hedge(program, questions, other, tmp_path):
    policy, traces = other("mean_logprob"), tmp_path / "t.jsonl"
    assert program("generate", model=policy, input=questions, output=traces, strategy="greedy")[0] == 0
    for name, flag, used in (("own", {}, "mean_logprob"), ("flag", {"confidence": "entropy"}, "entropy")):
        annotated, hedged = tmp_path / f"a_{name}.jsonl", tmp_path / f"h_{name}.jsonl"
        for run, output in (("annotate", annotated), ("hedge", hedged)):
            code, _, err = program(run, model=policy, input=traces, output=output, **flag)
            assert code == 0, err
            config = json.loads((tmp_path / f"{output.name}.manifest.json").read_text())["config"]
            assert config["confidence"] == used
    own, by_flag = (
        [s["confidence"] for t in read(tmp_path / f"a_{name}.jsonl") for s in t["steps"]]
        for name in ("own", "flag")
    )
    assert own != by_flag


def test_caspo_json_names_the_confidence_of_caspo(program, questions, other, tmp_path, monkeypatch):
    recipes = []

    def run_rounds(policy, asked, out_dir, recipe, **rest):
        recipes.append(recipe)
        return []

    monkeypatch.setattr("experiments.caspo.run_rounds", run_rounds)
    flags_ = {"model": other("mean_logprob"), "input": questions}
    assert program("caspo", **flags_, out_dir=tmp_path / "a")[0] == 0
    assert program("caspo", **flags_, out_dir=tmp_path / "b", confidence="first_token")[0] == 0
    assert [recipe.confidence for recipe in recipes] == ["mean_logprob", "first_token"]


def test_a_confidence_of_caspo_json_that_traces_do_not_tell_is_named(program, questions, other, tmp_path):
    result = program("caspo", model=other("deepconf"), input=questions, out_dir=tmp_path / "out")
    one_line(result, "caspo.json: confidence=deepconf", "traces do not hold")
    assert not (tmp_path / "out").exists()


def test_hedge_samples_as_its_flags_say(program, tmp_path):
    given = {"temperature": 0.5, "num_samples": 2, "max_new_tokens": 100, "top_p": 0.9}
    out = tmp_path / "h"
    code, _, err = program(
        "hedge", model=TASK.policy_path, out_dir=out, questions=2, test_questions=1, batch_size=8, **given
    )
    assert code == 0, err
    sampling = json.loads((out / "plain.jsonl.manifest.json").read_text())["config"]["sampling"]
    assert sampling.items() >= given.items()
    assert len(read(out / "right.jsonl")) == 4


def test_the_quickstart_computes_in_the_type_and_on_the_mesh_that_it_is_told(program, tmp_path, monkeypatch):
    recipes, compared = [], []

    def run_rounds(policy, asked, out_dir, recipe, **rest):
        recipes.append(recipe)
        return [policy]

    monkeypatch.setattr("experiments.quickstart.run_rounds", run_rounds)
    monkeypatch.setattr("experiments.quickstart_report.compare", lambda *given: compared.append(given))
    monkeypatch.setattr("experiments.quickstart_samples.write_quickstart_report", lambda *given: given[3])
    code, printed, err = program("quickstart", out_dir=tmp_path / "q", dtype="bfloat16", mesh="data:-1")
    assert code == 0, err
    (recipe,) = recipes
    assert recipe.dtype == "bfloat16"
    assert recipe.mesh.axis_names == ("data",)
    assert "report in bfloat16" in printed


def test_help_names_confidences_and_benchmarks(program, monkeypatch):
    from caspo_jax.confidence import STEP_CONFIDENCES
    from caspo_jax.evaluation.benchmarks import benchmark_names
    from caspo_jax.training.stages.annotate import TRACE_CONFIDENCES

    named = {"generate": ("confidence", STEP_CONFIDENCES), "evaluate": ("benchmarks", benchmark_names())}
    named |= dict.fromkeys(("annotate", "caspo", "hedge"), ("confidence", TRACE_CONFIDENCES))
    for name, (flag, values) in named.items():
        _taken(program, monkeypatch, name, {})
        assert ", ".join(values) in flags.FLAGS[flag].help, name
