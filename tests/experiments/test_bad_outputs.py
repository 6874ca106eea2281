"""No program writes over what it reads, nor over what it cannot know as its own; a flag that would do nothing is refused."""

import json
import re
import shutil

import pytest

from caspo_jax.tasks import get_task
from tests.experiments.test_bad_input import MODEL, one_line
from tests.experiments.test_bad_models_and_lines import OUTPUT, PAIR, QUESTION, TRACE

SOLUTION = {"id": "1", "problem": "p", "steps": ["1 + 1 = 2"], "label": -1}
CASES = {  # program: (a record that it reads, its flags for outputs)
    "generate": (QUESTION, ["output", "trees"]),
    "score": (OUTPUT, ["output"]),
    "annotate": (TRACE, ["output"]),
    "pairs": (TRACE, ["output", "trl_output"]),
    "calibrate": (QUESTION, ["output"]),
    "verifier_f1": (SOLUTION, ["output"]),
}


@pytest.mark.parametrize("name, flag", [(n, f) for n, (_, flags) in CASES.items() for f in flags])
def test_an_input_is_never_an_output(program, write, tmp_path, name, flag):
    record, _ = CASES[name]
    given = write("in.jsonl", [record])
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    before = given.read_bytes()
    more = {} if name == "verifier_f1" else {"model": MODEL, "overwrite": "true"}
    more |= {"output": tmp_path / "out.jsonl"} if flag != "output" else {}
    for path in (given, tmp_path / "link.jsonl"):
        one_line(program(name, **more, input=given, **{flag: path}), f"--{flag}", "--input")
    assert given.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_one_file_is_not_two_outputs(program, write, tmp_path):
    flags = {"model": MODEL, "input": write("in.jsonl", [TRACE]), "output": tmp_path / "o.jsonl"}
    one_line(program("pairs", **flags, trl_output=tmp_path / "o.jsonl"), "--trl_output", "--output")


def test_pairs_leave_a_file_of_somebody_else_s(program, write, tmp_path):
    flags = {"model": MODEL, "input": write("in.jsonl", [TRACE]), "output": tmp_path / "mine.jsonl"}
    flags["output"].write_text("mine")
    one_line(program("pairs", **flags), "no manifest beside it")
    assert flags["output"].read_text() == "mine"
    assert not (tmp_path / "mine.jsonl.manifest.json").exists()
    assert program("pairs", **flags, overwrite="true")[0] == 0
    assert flags["output"].read_text() == ""
    assert program("pairs", **flags)[0] == 0  # its own now


def test_an_output_of_another_program_is_told_in_few_words(program, write, tmp_path):
    """Not as a list of all settings of both, with the cause at its end."""
    flags = {"model": MODEL, "input": write("in.jsonl", [TRACE]), "output": tmp_path / "out.jsonl"}
    assert program("pairs", **flags)[0] == 0
    result = program("annotate", **flags)
    one_line(result, "is of 'pairs'", "--overwrite")
    assert len(result[2]) < 400
    assert program("annotate", **flags, overwrite="true")[0] == 0


def test_trl_records_have_a_manifest_and_replace_nobody_s(program, write, tmp_path):
    flags = {"model": MODEL, "input": write("in.jsonl", [TRACE]), "output": tmp_path / "pairs.jsonl"}
    flags["trl_output"] = tmp_path / "trl.jsonl"
    flags["trl_output"].write_text("mine")
    one_line(program("pairs", **flags), "trl.jsonl", "no manifest beside it")
    assert flags["trl_output"].read_text() == "mine"
    assert not flags["output"].exists()
    assert program("pairs", **flags, overwrite="true")[0] == 0
    assert flags["trl_output"].read_text() == ""
    assert program("pairs", **flags)[0] == 0
    assert json.loads((tmp_path / "trl.jsonl.manifest.json").read_text())["counts"] == {"pairs": 0}


def test_the_seed_of_pairs_is_theirs(program, write, tmp_path):
    flags = {"model": MODEL, "input": write("in.jsonl", [TRACE])}
    for name, more, seed in (("a", {}, 3), ("b", {"pairs.seed": 4}, 4)):
        output = tmp_path / f"{name}.jsonl"
        assert program("pairs", **flags, output=output, seed=3, **more)[0] == 0
        assert (
            json.loads((tmp_path / f"{name}.jsonl.manifest.json").read_text())["config"]["pairs"]["seed"]
            == seed
        )


def test_the_step_dataset_replaces_nobody_s_readme(program, write, tmp_path):
    pytest.importorskip("pyarrow")
    trace = TRACE | {"logprob": [-0.1, -0.2], "entropy": [0.1, 0.2]}
    flags = {"model": MODEL, "input": write("in.jsonl", [trace]), "output": tmp_path / "out.jsonl"}
    card = tmp_path / "mine" / "README.md"
    others = tmp_path / "mine" / "data" / "train-00000-of-00001.parquet"
    others.parent.mkdir(parents=True)
    others.write_text("mine")
    card.write_text("mine")
    one_line(program("annotate", **flags, dataset_dir=tmp_path / "mine"), "README.md", "--overwrite")
    one_line(program("annotate", **flags, dataset_dir=tmp_path / "in.jsonl"), "is a file")
    assert card.read_text() == others.read_text() == "mine"
    assert not flags["output"].exists()
    card.unlink()
    for _ in range(2):  # and its own is taken up
        assert program("annotate", **flags, dataset_dir=tmp_path / "mine")[0] == 0
    assert others.read_text() == "mine"


@pytest.mark.parametrize("more", [{}, {"overwrite": "true"}])
def test_an_output_that_is_a_folder_is_named(program, write, tmp_path, more):
    given, folder = write("in.jsonl", [OUTPUT]), tmp_path / "folder"
    folder.mkdir()
    one_line(
        program("score", model=MODEL, input=given, output=folder, **more), "folder: give the name of a file"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in.jsonl"]


def test_the_answers_are_neither_the_trees_nor_the_questions(program, write, tmp_path):
    given = write("o.jsonl.answers.jsonl", [QUESTION])
    before = given.read_bytes()
    flags = {"model": MODEL, "output": tmp_path / "o.jsonl", "strategy": "cat", "overwrite": "true"}
    one_line(program("generate", **flags, input=given), "--input", "the answers")
    assert given.read_bytes() == before
    flags["input"] = given.rename(tmp_path / "in.jsonl")
    one_line(program("generate", **flags, trees=given), "--trees", "the answers")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_report_replaces_reports_alone(program, write, tmp_path):
    given = write("in.jsonl", [TRACE])
    one_line(program("report", runs=tmp_path, output=given), "in.jsonl", "--overwrite")
    assert json.loads(given.read_text()) == TRACE
    output = tmp_path / "r.html"
    for _ in range(2):
        assert program("report", runs=tmp_path, output=output)[0] == 0
    ours = output.read_bytes()
    # Somebody's page; and a report from before they were marked, which cannot be told from one.
    for page in (
        b"<!doctype html>\n<title>mine</title>",
        re.sub(rb"<meta name=.generator.[^>]*>\n", b"", ours),
    ):
        output.write_bytes(page)
        one_line(program("report", runs=tmp_path, output=output), "r.html", "--overwrite")
        assert output.read_bytes() == page
        assert program("report", runs=tmp_path, output=output, overwrite="true")[0] == 0
        assert output.read_bytes() == ours


# What a program's folder begins with, so that it knows its own files.
BEGINNINGS = {
    "evaluate": "manifest.json",
    "evaluate --traces": "confidences.manifest.json",
    "faithfulness": "traces.jsonl.manifest.json",
    "quickstart": "round_1/traces.jsonl.manifest.json",
    "noise_sweep": "manifest.json",
}
RESULTS = {
    "evaluate": ("report.html", "table.md", "samples"),
    "evaluate --traces": ("report.html", "confidences.steps.csv"),
    "faithfulness": ("report.html", "report.json", "steps.jsonl", "agreement.png"),
    "quickstart": ("report.html", "summary.json", "entropy.png"),
    "noise_sweep": ("noise.json", "noise.png"),
}


@pytest.mark.parametrize("run, theirs", [(run, name) for run, names in RESULTS.items() for name in names])
def test_folders_of_others_keep_their_files(program, write, tmp_path, monkeypatch, run, theirs):
    """Another run's report too; and nothing is loaded or drawn before that is found."""
    from caspo_jax.training import rounds
    from caspo_jax.training.stages import Policy

    def begun(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(Policy, "load", begun)
    monkeypatch.setattr(rounds, "run_rounds", begun)
    traces = write("in.jsonl", [TRACE])
    out = tmp_path / "out"
    given = {
        "evaluate": {"model": MODEL, "benchmarks": "graph"},
        "evaluate --traces": {"model": MODEL, "traces": traces},
        "faithfulness": {"model": MODEL, "traces": traces},
        "quickstart": {},
        "noise_sweep": {},
    }[run] | {"out_dir": out}
    name = run.split()[0]
    (tmp_path / "of_another_run").mkdir()
    assert program("report", runs=tmp_path, output=tmp_path / "of_another_run" / "report.html")[0] == 0
    page = (tmp_path / "of_another_run" / "report.html").read_bytes()
    out.mkdir()
    for contents in (page, b"mine"):
        (out / theirs).write_bytes(contents)
        one_line(program(name, **given), theirs, "--overwrite")
        assert [path.name for path in out.iterdir()] == [theirs]
        assert (out / theirs).read_bytes() == contents
        if theirs != "report.html":
            break
    with pytest.raises(AssertionError, match="the work has begun"):
        program(name, **given, overwrite="true")
    if theirs == "report.html":  # its own by now, but for a page that is no report
        beginning = out / BEGINNINGS[run]
        beginning.parent.mkdir(exist_ok=True)
        beginning.write_text("{}")
        one_line(program(name, **given), theirs, "--overwrite")
        (out / theirs).write_bytes(page)
        with pytest.raises(AssertionError, match="the work has begun"):
            program(name, **given)


def test_quickstart_knows_its_summary(program, tmp_path):
    (tmp_path / "round_1").mkdir()
    (tmp_path / "round_1" / "traces.jsonl.manifest.json").write_text("{}")
    for mine in ("mine", "[]"):
        (tmp_path / "summary.json").write_text(mine)
        one_line(program("quickstart", out_dir=tmp_path), "summary.json", "--overwrite")
        assert (tmp_path / "summary.json").read_text() == mine


def test_a_policy_is_no_file_and_that_is_found_before_training(program, tmp_path):
    (tmp_path / "file").write_text("")
    one_line(program("train_tiny", task="graph", out_dir=tmp_path / "file", steps=1), "is a file")


def test_traces_that_cannot_be_read_leave_no_manifest(program, write, tmp_path):
    flags = {"model": MODEL, "out_dir": tmp_path / "out"}
    one_line(program("faithfulness", **flags, traces=write("none.jsonl", [])), "no traces")
    assert not (tmp_path / "out" / "traces.jsonl.manifest.json").exists()


def test_calibrations_replace_calibrations_alone(program, write, tmp_path, monkeypatch):
    from experiments import calibrate

    monkeypatch.setattr(calibrate, "sample_unpruned", lambda *_: [])
    flags = {"model": MODEL, "input": write("in.jsonl", [QUESTION]), "output": tmp_path / "c.json"}
    flags |= {"num_branches": 2, "max_new_tokens": 2}
    flags["output"].write_text('{"mine": 1}')
    one_line(program("calibrate", **flags), "c.json", "no calibration")
    assert json.loads(flags["output"].read_text()) == {"mine": 1}
    for more in ({"overwrite": "true"}, {"alpha": 0.2}):
        assert program("calibrate", **flags, **more)[0] == 0
    assert json.loads(flags["output"].read_text())["alpha"] == 0.2


@pytest.mark.parametrize(
    "strategy, flag, value",
    [
        ("sample", "threshold", 0.5),
        ("greedy", "num_branches", 4),
        ("self_consistency", "vote", "sequence"),
        ("explore", "threshold", 0.5),
        ("explore", "prune", "last"),
    ],
)
def test_flags_of_a_search_go_with_a_search(program, write, tmp_path, strategy, flag, value):
    flags = {"model": MODEL, "input": write("in.jsonl", [QUESTION]), "output": tmp_path / "o.jsonl"}
    one_line(program("generate", **flags, strategy=strategy, **{flag: value}), f"--{flag}", "--strategy=cat")
    assert not (tmp_path / "o.jsonl.manifest.json").exists()


@pytest.mark.parametrize("flag, value", [("format", "peft"), ("checkpoint", "best")])
def test_flags_of_a_run_do_not_go_with_adapters(program, tmp_path, flag, value):
    flags = {"model": MODEL, "adapter": tmp_path, "output": tmp_path / "out", flag: value}
    one_line(program("export", **flags), f"--{flag}", "--adapter")


def test_an_export_is_of_a_run_or_of_adapters(program, tmp_path):
    flags = {"model": MODEL, "output": tmp_path / "out"}
    for given in ({}, {"run": tmp_path, "adapter": tmp_path}):
        one_line(program("export", **flags, **given), "give one of --run and --adapter")


@pytest.mark.parametrize("flag, value", [("confidence", "entrpy"), ("prune", "lst")])
def test_quickstart_finds_a_wrong_name_before_the_rounds(program, tmp_path, flag, value):
    one_line(program("quickstart", out_dir=tmp_path / "run", **{flag: value}), value, "choose from")
    assert not (tmp_path / "run").exists()


def test_seeds_are_as_many_as_jax_tells_apart(program, write, tmp_path):
    from absl import flags

    given = {"model": MODEL, "input": write("in.jsonl", [QUESTION]), "output": tmp_path / "o.jsonl"}
    with pytest.raises(flags.IllegalFlagValueError, match="seed"):
        program("generate", **given, seed=2**32)


STEP_DPO = {"prompt": "q = 5", "initial_reason_steps": "", "chosen": "put m", "rejected": "get m"}


def test_steps_of_others_end_as_told(program, write, tmp_path, monkeypatch):
    """By --step_delimiter of `train`; without one by caspo.json's."""
    from caspo_jax.errors import UserError
    from caspo_jax.models import load_tokenizer
    from caspo_jax.training.stages import train as stage

    read = []

    def train(_, pairs, *more, **options):
        read.extend(pairs)
        raise UserError("far enough")

    monkeypatch.setattr(stage, "train", train)
    model, given = get_task("graph").policy_path, write("pairs.jsonl", [STEP_DPO])
    flags = {"model": model, "pairs_file": given, "preset": "paper"}
    one_line(program("train", **flags, out_dir=tmp_path / "a", step_delimiter=r";\n"), "far enough")
    one_line(program("train", **flags, out_dir=tmp_path / "b"), "far enough")
    tokenizer = load_tokenizer(model)
    assert [tokenizer.decode(pair.chosen_ids) for pair in read] == ["put m;\n", "put m\n\n"]
    config = json.loads((tmp_path / "a" / "manifest.json").read_text())["config"]
    assert config["delimiter"] == ";\n"
    one_line(program("train", **flags, out_dir=tmp_path / "a"), "delimiter")  # another run


def test_pairs_of_others_are_held_against_the_policy(program, write, tmp_path):
    """As our own are: their line is named, where the context holds none of them or nothing can read them."""
    policy = get_task("graph").policy_path
    flags = {"preset": "paper", "out_dir": tmp_path / "run"}
    long = write("long.jsonl", [STEP_DPO | {"chosen": "m = 1, " * 300}])
    one_line(program("train", model=policy, pairs_file=long, **flags), "none", "long.jsonl:1", "context")
    flags["pairs_file"] = write("pairs.jsonl", [STEP_DPO])
    bare = shutil.copytree(MODEL, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*", "expected.npz"))
    one_line(program("train", model=bare, **flags), "pairs.jsonl:1", "no tokenizer")
    assert not (tmp_path / "run").exists()


def test_train_reads_pairs_that_mean_something(program, write, tmp_path):
    flags = {"model": MODEL, "preset": "paper", "out_dir": tmp_path / "run"}
    for field, value in (("weight", -1), ("weight", "1"), ("ends_trace", [True])):
        given = write("pairs.jsonl", [PAIR, PAIR | {field: value}])
        one_line(program("train", **flags, pairs_file=given), "pairs.jsonl:2", f"`{field}`")
    given = write("pairs.jsonl", [PAIR])
    for field, value in (("seed", -1), ("eps", 0)):
        one_line(program("train", **flags, pairs_file=given, **{f"train.{field}": value}), field)
