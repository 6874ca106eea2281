"""--instruction, and the escapes of flags that take text."""

import json

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks import get_benchmark
from caspo_jax.evaluation.benchmarks.base import BOXED
from caspo_jax.tasks import get_task
from caspo_jax.types import Question
from experiments import common
from experiments.benchmark_source import FileBenchmark, TuneBenchmark
from experiments.escapes import escaped, unescaped
from tests.experiments.conftest import read
from tests.experiments.test_bad_input import one_line

TASK = get_task("graph")
TWO = [
    {"id": "a", "question": "1 + 1?", "gold": "2"},
    {"id": "b", "question": "?", "prompt": "2 + 2?", "gold": "4"},
]


def test_the_instruction_asks_as_the_benchmarks_do(program, write, tmp_path):
    flags = {
        "model": TASK.policy_path,
        "input": write("q.jsonl", TWO),
        "strategy": "greedy",
        "max_new_tokens": 2,
    }
    out = tmp_path / "t.jsonl"
    code, _, err = program("generate", output=out, instruction="boxed", **flags)
    assert code == 0, err
    first, second = read(out)
    assert first["question"] == get_benchmark("math500").prompt(Question("a", question="1 + 1?"))
    assert first["question"] == f"1 + 1?\n{BOXED}"
    assert second["question"] == "?"  # a final prompt stays
    manifest = json.loads((tmp_path / "t.jsonl.manifest.json").read_text())
    assert manifest["config"]["instruction"] == BOXED
    one_line(program("generate", output=out, **flags), "other settings")
    asked = [t["prompt_ids"] for t in read(out)]
    code, _, err = program("generate", output=tmp_path / "plain.jsonl", **flags)
    assert code == 0, err
    plain = [t["prompt_ids"] for t in read(tmp_path / "plain.jsonl")]
    assert (len(asked[0]) > len(plain[0]), asked[1] == plain[1]) == (True, True)


def test_an_instruction_that_does_nothing_is_refused(program, write, tmp_path):
    flags = {"model": TASK.policy_path, "input": write("q.jsonl", TWO[1:]), "output": tmp_path / "t.jsonl"}
    one_line(program("generate", instruction="boxed", **flags), "final prompts")
    tokens = write("ids.jsonl", [{"id": "c", "question": "1 + 1?", "prompt_ids": [5, 6]}])
    one_line(program("generate", instruction="boxed", **(flags | {"input": tokens})), "final prompts")
    one_line(program("generate", instruction=r"\n ", **flags), "--instruction is blank")
    one_line(program("generate", instruction=r"in \boxed{}", **flags), r"\b is no escape")
    evaluate = {"model": TASK.policy_path, "benchmarks": "graph", "out_dir": tmp_path / "e"}
    one_line(program("evaluate", instruction="boxed", **evaluate), "--instruction goes with --input")
    one_line(program("evaluate", instruction="boxed", compare="a,b"), "--instruction goes with --input")


def test_some_questions_may_have_no_gold(program, write, tmp_path):
    given = write("q.jsonl", [{"question": "1 + 1?", "solution": "2"}, {"question": "2 + 2?"}])
    flags = {"model": TASK.policy_path, "input": given, "strategy": "greedy", "max_new_tokens": 2}
    code, _, err = program("generate", output=tmp_path / "t.jsonl", gold_field="solution", **flags)
    assert code == 0, err
    assert [trace["gold"] for trace in read(tmp_path / "t.jsonl")] == ["2", None]


def test_a_threshold_holds_for_the_instruction_it_was_made_under(program, write, tmp_path):
    file, calibration = write("q.jsonl", TWO[:1]), tmp_path / "cal.json"
    flags = {"model": TASK.policy_path, "input": file, "max_new_tokens": 4}
    search = {"num_branches": 2, "alpha": 0.5}
    code, _, err = program("calibrate", output=calibration, instruction=r"Say \\x.", **search, **flags)
    assert code == 0, err
    assert json.loads(calibration.read_text())["instruction"] == "Say \\x."
    cat = {"model": TASK.policy_path, "input": file, "strategy": "cat", "calibration": calibration}
    code, _, err = program("generate", output=tmp_path / "t.jsonl", **cat)
    assert code == 0, err
    assert read(tmp_path / "t.jsonl")[0]["question"] == "1 + 1?\nSay \\x."
    one_line(program("generate", output=tmp_path / "u.jsonl", instruction="boxed", **cat), "does not hold")


def test_escapes_are_read_alike():
    for text, meant in (
        (r"\r\n", "\r\n"),
        (r"\n\n", "\n\n"),
        (r"a\tb", "a\tb"),
        (r"\\n", r"\n"),
        ("。", "。"),
    ):
        assert unescaped("stop", text) == meant
    for text in ("\\boxed\n", r"\n", "\n"):
        assert unescaped("stop", escaped(text)) == text
    for bad in (r"\boxed", "\\", "a\\\n"):
        with pytest.raises(UserError, match="is no escape"):
            unescaped("stop", bad)


def test_stop_and_step_delimiter_read_escapes(program, write, tmp_path):
    out = tmp_path / "t.jsonl"
    flags = {
        "model": TASK.policy_path,
        "input": write("q.jsonl", TWO[:1]),
        "strategy": "greedy",
        "max_new_tokens": 2,
    }
    code, _, err = program("generate", "--stop=\\n\\n", output=out, step_delimiter=r"\r\n", **flags)
    assert code == 0, err
    sampling = json.loads((tmp_path / "t.jsonl.manifest.json").read_text())["config"]["sampling"]
    assert (sampling["stop"], sampling["step_delimiter"]) == (["\n\n"], "\r\n")
    one_line(program("generate", output=out, stop=r"\boxed", **flags), "--stop")


@pytest.mark.parametrize(
    "benchmark, own", [(FileBenchmark("q.jsonl", None), True), (get_benchmark("math500"), False)]
)
def test_tuning_questions_are_asked_as_the_others(monkeypatch, benchmark, own):
    """Those of a benchmark in its own words, which --instruction is not added to."""
    seen = []
    monkeypatch.setattr(common, "load_questions", lambda path, **how: seen.append(how["instruct"]) or [])
    TuneBenchmark(benchmark, "tune.jsonl").load()
    assert seen == [own]
