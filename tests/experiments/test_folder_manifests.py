"""DIR/manifest.json of programs whose stages have manifests of their own: what made everything in the folder."""

import json

import pytest

from caspo_jax.errors import UserError
from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from tests.experiments.conftest import contents
from tests.experiments.test_bad_input import MODEL, one_line
from tests.experiments.test_bad_models_and_lines import TRACE

TASK = get_task("graph")


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture
def stages(monkeypatch):
    """What the rounds do instead of their work: they begin their first stage, then `then` says how they end."""
    ends = {"then": lambda: None, "begin": True, "runs": 0}

    def run_rounds(policy, asked, out_dir, recipe, *, rounds, **rest):
        ends["runs"] += 1
        if ends["begin"]:
            (out_dir / "round_1").mkdir(parents=True, exist_ok=True)
            (out_dir / "round_1" / "traces.jsonl.manifest.json").touch()
        ends["then"]()
        return [out_dir / f"round_{k}" / "policy" for k in range(1, rounds + 1)]

    for program in ("caspo", "quickstart"):
        monkeypatch.setattr(f"experiments.{program}.run_rounds", run_rounds)
    monkeypatch.setattr("experiments.quickstart_report.compare", lambda *given: None)
    monkeypatch.setattr("experiments.quickstart_samples.write_quickstart_report", lambda *given: "here")
    return ends


@pytest.fixture(params=["caspo", "quickstart"])
def run(request, program, stages, write, tmp_path):
    """run(**more) -> the result of the program; its name is `run.name`."""
    flags = {"out_dir": tmp_path / "out"}
    if request.param == "caspo":
        asked = write("q.jsonl", [question_to_record(q) for q in TASK.questions("train", 2, seed=3)])
        flags |= {"model": TASK.policy_path, "input": asked}

    def call(**more):
        return program(request.param, **flags, **more)

    call.name = request.param
    return call


def test_a_folder_says_what_made_it_and_refuses_other_settings(run, stages, tmp_path):
    out = tmp_path / "out"
    assert run(rounds=1)[0] == 0
    made = manifest_of(out)
    assert made["program"] == run.name
    assert (made["complete"], made["counts"]["rounds"], made["config"]["seed"]) == (True, 1, 0)
    assert made["config"]["preset"] == "caspo"
    assert {"caspo_jax", "jax"} <= made["versions"].keys()
    for same in ({}, {"batch_size": 7}):  # are taken up
        assert run(rounds=1, **same)[0] == 0
        assert manifest_of(out) == made
    for changed in ({"seed": 1}, {"preset": "paper"}):
        (name,) = changed
        one_line(run(rounds=1, **changed), f"{name}: ", " then, ", "--overwrite")
    assert stages["runs"] == 3  # refused before anything is done
    assert manifest_of(out) == made
    assert run(rounds=1, seed=1, overwrite="true")[0] == 0
    assert manifest_of(out)["config"]["seed"] == 1


def test_more_rounds_may_follow_and_controls(run, tmp_path):
    assert run(rounds=1)[0] == 0
    more = {"rounds": 3} if run.name == "caspo" else {"rounds": 3, "controls": "true"}
    assert run(**more)[0] == 0
    counts = manifest_of(tmp_path / "out")["counts"]
    assert (counts["rounds"], counts.get("controls", True)) == (3, True)


def test_a_folder_of_an_earlier_version_is_taken_up(run, stages, tmp_path):
    out = tmp_path / "out"
    assert run(rounds=1)[0] == 0
    (out / "manifest.json").unlink()

    def refuse():
        assert not (out / "manifest.json").exists()
        raise UserError("a stage has other settings")

    stages["then"] = refuse
    one_line(run(rounds=1, seed=1), "a stage has other settings")
    assert not (out / "manifest.json").exists()  # so the right ones are not refused for it
    stages["then"] = lambda: None
    assert run(rounds=1)[0] == 0
    assert manifest_of(out)["complete"]
    one_line(run(rounds=1, seed=1), "seed: 0 then, 1 now")


def test_a_kill_leaves_what_the_same_command_goes_on_from(run, stages, tmp_path):
    def killed():
        raise KeyboardInterrupt

    stages["then"], stages["begin"] = killed, False
    assert run(rounds=1, seed=1)[0] == 130
    assert not manifest_of(tmp_path / "out")["complete"]
    stages["begin"] = True
    assert run(rounds=1)[0] == 130  # nothing was made: other settings may begin
    one_line(run(rounds=1, seed=1), "seed: 0 then, 1 now")
    stages["then"] = lambda: None
    assert run(rounds=1)[0] == 0
    assert manifest_of(tmp_path / "out")["complete"]


def test_a_setting_of_the_rounds_is_named_by_itself(run, tmp_path):
    if run.name == "quickstart":
        pytest.skip("its rounds have the settings of experiments/configs")
    assert run(rounds=1, temperature=0.7)[0] == 0
    result = run(rounds=1, temperature=0.8)
    one_line(result, "sample.round_1.temperature: 0.7 then, 0.8 now")
    assert len(result[2]) < 400


def test_hedged_traces(program, tmp_path):
    out = tmp_path / "h"
    flags = {"model": TASK.policy_path, "out_dir": out, "questions": 4, "batch_size": 8}
    assert program("hedge", **flags, test_questions=3)[0] == 0
    before, made = contents(out), manifest_of(out)
    assert (made["program"], made["complete"], made["config"]["test_questions"]) == ("hedge", True, 3)
    one_line(program("hedge", **flags, test_questions=5), "test_questions: 3 then, 5 now")
    assert contents(out) == before
    (out / "manifest.json").unlink()  # as earlier versions left it
    assert program("hedge", **flags, test_questions=3)[0] == 0
    assert contents(out) == before
    assert manifest_of(out)["config"] == made["config"]


def test_a_step_dataset(program, write, tmp_path):
    pytest.importorskip("pyarrow")
    step = {"start": 0, "end": 2, "token_start": 0, "token_end": 2, "text": ")*"}
    trace = TRACE | {"steps": [step]}
    folder = tmp_path / "dataset"
    flags = {"model": MODEL, "input": write("in.jsonl", [trace]), "dataset_dir": folder}
    assert program("annotate", **flags, output=tmp_path / "a.jsonl")[0] == 0
    made = manifest_of(folder)
    assert (made["program"], made["complete"], made["counts"]["steps"]) == ("annotate/dataset", True, 1)
    assert made["config"] == {"confidence": "entropy"}
    assert program("annotate", **flags, output=tmp_path / "a.jsonl")[0] == 0
    assert manifest_of(folder) == made
    other = {"output": tmp_path / "b.jsonl", "confidence": "mean_logprob"}
    one_line(program("annotate", **flags, **other), "confidence: 'entropy' then, 'mean_logprob' now")
    assert manifest_of(folder) == made
    (folder / "manifest.json").unlink()  # as earlier versions left it
    assert program("annotate", **flags, output=tmp_path / "a.jsonl")[0] == 0
    assert manifest_of(folder)["config"] == made["config"]
    assert program("annotate", **flags, **other, overwrite="true")[0] == 0
    assert manifest_of(folder)["config"] == {"confidence": "mean_logprob"}


def test_a_step_dataset_that_had_no_step_leaves_room_for_one(program, write, tmp_path):
    empty = {"model": MODEL, "input": write("in.jsonl", [TRACE | {"text": "", "token_ids": []} | NOTHING])}
    one_line(program("annotate", **empty, output=tmp_path / "a.jsonl", dataset_dir=tmp_path / "d"), "no step")
    given = {"model": MODEL, "input": write("good.jsonl", [TRACE])}
    assert program("annotate", **given, output=tmp_path / "b.jsonl", dataset_dir=tmp_path / "d")[0] == 0


NOTHING = {"logprob": [], "entropy": []}


def test_settings_that_the_first_stage_refuses_leave_no_manifest(run, stages, tmp_path):
    def refuse():
        raise UserError("a prompt that does not fit")

    stages["then"], stages["begin"] = refuse, False
    one_line(run(rounds=1), "does not fit")
    assert not list((tmp_path / "out").iterdir())
    stages["begin"] = True  # once something was made, the manifest stays
    one_line(run(rounds=1), "does not fit")
    assert not manifest_of(tmp_path / "out")["complete"]
