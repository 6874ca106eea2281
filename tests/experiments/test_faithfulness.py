"""The faithfulness program on the shipped tiny policy: all stages, killed anywhere, bad input."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from caspo_jax.confidence.probe import Probe, save_probe
from caspo_jax.outputs import JsonlOutput
from caspo_jax.tasks import get_task
from tests.experiments.conftest import contents, faithfulness_flags, read

TASK = get_task("graph")
FILES = ("traces", "decisiveness", "token", "hidden", "continuations", "prefix", "probe", "steps")


def test_all_stages(program, hedged, finished):
    out = finished["folder"]
    for name in FILES:
        assert (out / f"{name}.jsonl").exists(), name
    report = json.loads((out / "report.json").read_text())
    assert "What trivial words would score" in (out / "report.html").read_text(encoding="utf-8")
    assert report["traces"]["traces"] == 6
    assert report["traces"]["questions"] == 3
    assert report["traces"]["retokenised"] == 6
    assert set(report["faithfulness"]["lexicon"]) == {
        "token",
        "entropy",
        "hidden",
        "hidden_running",
        "prefix",
        "probe",
    }
    sampled = read(out / "prefix.jsonl")
    assert report["continuations"] == {
        "judged": sum(2 * len(record["steps"]) for record in sampled),  # --samples=2
        "unparsed": sum(sum(record["unparsed"]) for record in sampled),
    }
    steps = read(out / "steps.jsonl")
    for file in out.rglob("*.jsonl"):
        assert all(set(record["schema"]) == {"name", "version"} for record in read(file)), file
    assert len(steps) == report["traces"]["steps"]
    for step in steps:
        for value in (*step["decisiveness"].values(), *step["confidence"].values()):
            assert value is None or 0.0 <= value <= 1.0
    last = [s for s in steps if s["text"].startswith("answer")]
    assert {s["right"] for s in last} == {True, False}
    assert {round(s["decisiveness"]["lexicon"], 2) for s in last} == {0.42, 0.9}
    sure = {
        right: np.mean([s["confidence"]["prefix"] for s in last if s["right"] is right])
        for right in (True, False)
    }
    assert sure[True] > sure[False]  # the model would not say the wrong number
    for plot in ("decisiveness_lexicon", "traces_lexicon_hidden", "agreement"):
        assert (out / f"{plot}.png").stat().st_size > 5000
    assert (out / "probe" / "probe.safetensors").exists()
    assert "words scored by lexicon" in finished["printed"]
    code, printed, _ = program("faithfulness", "--noplots", "--log_json", **faithfulness_flags(hedged, out))
    assert code == 0
    assert contents(out) == finished["files"]
    events = [e for e in map(json.loads, printed.splitlines()) if e["event"] == "progress"]
    assert "plots" not in {e["stage"] for e in events}
    for stage in ("report", "report.html"):
        *_, last = (e for e in events if e["stage"] == stage)
        assert last["done"] == last["total"] == sum(e["stage"] == stage for e in events), stage


@pytest.mark.parametrize("appends", range(6))
def test_killed_at_any_stage_it_goes_on(program, hedged, tmp_path, finished, monkeypatch, appends):
    """A kill after so many writes, each leaving a torn line behind: the next run ends with the same files."""
    real, done = JsonlOutput.append, []

    def append(self, records):
        if len(done) == appends:
            real(self, records[: len(records) // 2])
            with open(self._partial, "ab") as file:
                file.write(b'{"id": "torn')
            raise KeyboardInterrupt
        done.append(self.path.name)
        real(self, records)

    out = tmp_path / "run"
    monkeypatch.setattr(JsonlOutput, "append", append)
    assert program("faithfulness", **faithfulness_flags(hedged, out))[0] == 130
    assert not (out / "report.json").exists()
    monkeypatch.setattr(JsonlOutput, "append", real)
    code, _, err = program("faithfulness", "--noplots", **faithfulness_flags(hedged, out))
    assert code == 0, err
    assert contents(out) == finished["files"]


# The program whose first write to a file that is not named in SPARED dies in the middle.
KILLED = """
import os, signal
from caspo_jax.outputs import JsonlOutput
from experiments import faithfulness, common

real, spared = JsonlOutput.append, os.environ["SPARED"].split()

def append(self, records):
    if records and self.path.name not in spared:
        real(self, records[: len(records) // 2])
        with open(self._partial, "ab") as file:
            file.write(b'{"id": "torn')
        print(self.path.name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, records)

JsonlOutput.append = append
faithfulness.define_flags()
common.run(faithfulness.main)
"""


@pytest.mark.slow
def test_sigkill_in_every_stage(hedged, tmp_path, finished):
    """Real processes, each ended by the system in the middle of a write to the next file, until one gets through."""
    out = tmp_path / "run"
    given = [f"--{k}={v}" for k, v in faithfulness_flags(hedged, out).items()]
    at: list[str] = []
    for _ in range(12):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, "--noplots", *given],
            env={**os.environ, "SPARED": " ".join(at)},
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert not (out / "report.json").exists()
        at.append(ended.stdout.split()[-1])
    assert ended.returncode == 0
    assert {"hidden.jsonl", "prefix.jsonl", "probe.jsonl"} <= set(at), at
    assert contents(out) == finished["files"]


def test_stages_one_by_one_and_another_judge(program, hedged, tmp_path, finished):
    out = tmp_path / "run"
    for stage in ("token", "hidden", "decisiveness"):
        assert program("faithfulness", **faithfulness_flags(hedged, out), stages=stage)[0] == 0
    for name in ("token", "hidden", "decisiveness"):
        assert contents(out)[f"{name}.jsonl"] == finished["files"][f"{name}.jsonl"]
    scores = tmp_path / "scores.jsonl"
    lines = [
        {"trace_id": t["id"], "decisiveness": [1.0] * len(t["steps"]), "steps": t["steps"]}
        for t in read(finished["folder"] / "traces.jsonl")
    ]
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recorded = {"scores": scores, "stages": "decisiveness,report"}
    code, _, err = program("faithfulness", "--noplots", **faithfulness_flags(hedged, out), **recorded)
    assert code == 1
    assert "scorers" in err
    assert (
        program("faithfulness", "--noplots", "--overwrite", **faithfulness_flags(hedged, out), **recorded)[0]
        == 0
    )
    report = json.loads((out / "report.json").read_text())
    assert set(report["faithfulness"]) == {"lexicon", "recorded"}
    assert report["scorer_agreement"][0]["first"] == "lexicon"
    assert set(report["faithfulness"]["recorded"]) == {"token", "entropy", "hidden", "hidden_running"}


def test_a_stage_left_from_another_run_is_not_reported(program, hedged, tmp_path, finished):
    """Some stages run anew with other settings, the others' files still there."""
    shutil.copytree(finished["folder"], tmp_path / "o")
    flags = faithfulness_flags(hedged, tmp_path / "o") | {"overwrite": True, "steps": "all", "plots": False}
    code, _, err = program("faithfulness", **flags, stages="decisiveness,report")
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "token.jsonl: measured with other settings than traces.jsonl (steps)" in err
    for name in ("token", "hidden", "prefix", "probe"):
        (tmp_path / "o" / f"{name}.jsonl").unlink()
    assert program("faithfulness", **flags, stages="decisiveness,report")[0] == 0


def test_a_report_by_other_settings_is_not_replaced(program, hedged, tmp_path, finished):
    """The manifest of the folder says with which settings its report was made; more stages are welcome."""
    out = tmp_path / "run"
    shutil.copytree(finished["folder"], out)
    given = faithfulness_flags(hedged, out) | {"stages": "report", "plots": "false"}
    before = (out / "report.json").read_bytes()
    settings = json.loads(before)["settings"]
    assert {"seed": 0, "draws": 20, "verifier": "exact"}.items() <= settings.items()
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["program"], manifest["config"], manifest["complete"]) == ("faithfulness", settings, True)
    for name, value in (("draws", 10), ("seed", 5), ("verifier", "none")):
        code, _, err = program("faithfulness", **(given | {name: value}))
        assert (code, len(err.strip().splitlines())) == (1, 1)
        assert f"{name}: {settings[name]!r} then, {value!r} now" in err
        assert "--overwrite" in err
    assert program("faithfulness", **given)[0] == 0  # the same again
    assert (out / "report.json").read_bytes() == before
    changed = given | {"draws": 10, "verifier": "none", "overwrite": "true"}
    assert program("faithfulness", **changed)[0] == 0
    report = json.loads((out / "report.json").read_text())
    assert (report["settings"]["draws"], report["calibration"]) == (10, {})


def test_a_report_of_an_earlier_version_is_read_and_not_replaced(program, hedged, tmp_path, finished):
    """It has no manifest of its own, and does not say which seed, draws and verifier it is of."""
    out = tmp_path / "run"
    shutil.copytree(finished["folder"], out)
    (out / "manifest.json").unlink()
    before = (out / "report.json").read_bytes()
    given = faithfulness_flags(hedged, out) | {"stages": "report", "plots": "false"}
    code, _, err = program("faithfulness", **given)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "report.json is of an earlier version" in err
    assert (out / "report.json").read_bytes() == before
    for kind in ("compare", "order"):
        flags = {kind: f"{out},{finished['folder']}", "out_dir": tmp_path / kind, "draws": 5}
        code, _, err = program("faithfulness", **flags)
        assert code == 0, err
    assert program("faithfulness", **given, overwrite="true")[0] == 0
    (out / "report.json").unlink()  # a run that ended before its report may be gone on with in another way
    assert program("faithfulness", **(given | {"draws": 10}))[0] == 0


def test_the_manifest_of_another_program_stays(program, hedged, tmp_path):
    (tmp_path / "manifest.json").write_text('{"program": "evaluate", "config": {}}')
    given = faithfulness_flags(hedged, tmp_path) | {"stages": "decisiveness,report", "plots": "false"}
    code, _, err = program("faithfulness", **given)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "is of 'evaluate'" in err


def test_another_rubric_is_another_judge(program, tmp_path):
    """A rubric's hash is in the manifest: scores by another one are not taken for these."""
    from experiments import faithfulness_judges

    rubric, seen = tmp_path / "r.md", []
    judge = {"decisiveness_judge": TASK.policy_path, "rubric": rubric}
    for text in ("Rate {step}", "Rate this: {step}"):
        rubric.write_text(text)
        assert (
            program("faithfulness", out_dir=tmp_path, **judge)[0] == 1
        )  # without --traces: its flags are set
        seen.append(faithfulness_judges.build_scorers()[1])
    assert seen[0]["judge"] == seen[1]["judge"]
    assert seen[0]["rubric"] != seen[1]["rubric"]


def test_a_step_that_fills_the_context_of_the_judge_has_no_rating(program, tmp_path):
    from experiments import faithfulness_judges

    (tmp_path / "r.md").write_text("Rate {step}")
    judge = {"decisiveness_judge": TASK.policy_path, "rubric": tmp_path / "r.md"}
    assert program("faithfulness", out_dir=tmp_path, **judge)[0] == 1  # without --traces: its flags are set
    (*_, scorer), _ = faithfulness_judges.build_scorers()
    assert scorer.score(["2 + 2 = 4. " * 1000]) == [None]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stages": "tokens"}, "--stages=tokens: choose from"),
        ({"traces": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"model": "nowhere"}, "model folder not found"),
        ({"consistency": "judge"}, "needs --contradiction_judge"),
        ({"compare": "a,b"}, "drop --traces"),
        ({"rubric": "x.md"}, "--rubric goes with"),
        ({"probe": "nowhere", "stages": "probe"}, "no probe here"),
    ],
)
def test_bad_input_is_one_line(program, hedged, tmp_path, changes, message):
    code, _, err = program("faithfulness", **(faithfulness_flags(hedged, tmp_path / "o") | changes))
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"consistency": "judge"}, "needs --contradiction_judge"),
        ({"contradiction_judge": "."}, "no config.json in it"),
        ({"probe": "nowhere"}, "no probe here"),
        ({"probe": "narrow"}, "reads 7 features of a step, not 192"),
        ({"temperature": 0}, "continuations must differ"),
    ],
)
def test_what_a_late_stage_refuses_is_refused_before_the_first(program, hedged, tmp_path, changes, message):
    """Prefix sampling may take a day, and the probe comes after it."""
    if changes.get("probe") == "narrow":
        changes = {"probe": tmp_path / "narrow"}
        ones = np.ones(7, np.float32)
        save_probe(Probe(ones, 0.0, ones, ones), tmp_path / "narrow")
    code, _, err = program("faithfulness", **(faithfulness_flags(hedged, tmp_path / "o") | changes))
    assert (code, err.count("\n")) == (1, 1), err
    assert message in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["traces", "steps", "prefix"])
def test_the_traces_that_are_read_are_not_written_over(program, hedged, tmp_path, name):
    mine = tmp_path / f"{name}.jsonl"
    shutil.copy(hedged, mine)
    code, _, err = program(
        "faithfulness", **(faithfulness_flags(mine, tmp_path) | {"stages": "decisiveness"})
    )
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "choose another folder" in err
    assert mine.read_bytes() == hedged.read_bytes()


@pytest.mark.parametrize("changes", [{"mu": 1.5}, {"delta": -0.1}, {"delta": 3}])
def test_settings_of_rcc_outside_their_range(program, hedged, tmp_path, changes):
    """They would give confidences outside [0, 1], clipped without a word."""
    with pytest.raises(flags.IllegalFlagValueError, match="range"):
        program("faithfulness", **(faithfulness_flags(hedged, tmp_path / "o") | changes))


def test_a_file_in_the_folder_s_place_is_refused_first(program, hedged):
    for given in (
        faithfulness_flags(hedged, hedged),
        {"compare": "nowhere,nowhere", "out_dir": hedged / "below"},
    ):
        code, _, err = program("faithfulness", **given)
        assert (code, len(err.strip().splitlines())) == (1, 1)
        assert "in.jsonl is a file" in err


def test_without_traces(program, tmp_path):
    code, _, err = program("faithfulness", out_dir=tmp_path, model=TASK.policy_path)
    assert code == 1
    assert "--traces is missing" in err


@pytest.mark.parametrize(
    ("gaps", "median"), [([None, 0.01, 5.0], 2.505), ([3.0, 0.5, 1.0], 1.0), ([None], None)]
)
def test_the_median_of_gaps_is_their_middle(tmp_path, gaps, median):
    from experiments.faithfulness_report import recorded_logprobs

    lines = [json.dumps({"id": str(i), "logprob_gap": gap}) for i, gap in enumerate(gaps)]
    (tmp_path / "token.jsonl").write_text("\n".join(lines) + "\n")
    known = [gap for gap in gaps if gap is not None]
    want = {"traces": len(known), "median_gap": median, "largest_gap": max(known)} if known else {"traces": 0}
    assert recorded_logprobs(tmp_path) == pytest.approx(want)


def test_log_probs_that_are_no_numbers_are_missing(program, write, tmp_path):
    """Python writes -Infinity and NaN as JSON, and so does vLLM: the largest gap was infinite, which no file takes."""
    logprobs = [{"40": {"logprob": -1.0}}, {"41": {"logprob": -math.inf}}, {"42": {"logprob": math.nan}}]
    output = {"text": "", "token_ids": [40, 41, 42], "logprobs": logprobs}
    given = write("vllm.jsonl", [{"id": "a", "prompt": "a = 2. a?\n", "outputs": [output]}])
    flags = {"model": TASK.policy_path, "stages": "decisiveness,token"}
    code, _, err = program("faithfulness", traces=given, out_dir=tmp_path / "f", **flags)
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "f/token.jsonl").read_text())
    assert 0.0 < record["logprob_gap"] < 100.0
    assert record["mean_logprob"] == [pytest.approx(math.exp(-1.0))]  # of the one that is known


def test_outputs_of_other_tools_go_on_as_traces(program, write, tmp_path):
    """The way of docs/formats.md; `annotate` named an id alone, and wrote steps without confidence without a word."""
    flags = {"model": TASK.policy_path}
    vllm = {"prompt": "a = 2; b: a + 3. b?\n", "gold": "5", "outputs": [{"text": "so b = 5\n\nanswer: 5"}]}
    given, annotated = write("vllm.jsonl", [vllm]), tmp_path / "annotated.jsonl"
    code, _, said = program("annotate", **flags, input=given, output=annotated)
    assert code == 1
    assert "experiments.faithfulness" in said
    read_in = {"traces": given, "out_dir": tmp_path / "f", "stages": "decisiveness"}
    assert program("faithfulness", **flags, **read_in)[0] == 0
    code, said, _ = program("annotate", **flags, input=tmp_path / "f/traces.jsonl", output=annotated)
    assert code == 0
    assert said.split("no confidence")[1].split() == ["2"]
    assert read(annotated)[0]["correct"] is True
