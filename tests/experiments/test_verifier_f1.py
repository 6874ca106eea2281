"""The program that holds a verifier against labelled first errors."""

import itertools
import json
import random

from caspo_jax.tasks import get_task
from tests.evaluation.test_verifier_f1 import ROWS

TASK = get_task("graph")


def test_stated_equations_without_a_model(program, write, tmp_path):
    path = write("p.jsonl", ROWS)
    code, out, err = program("verifier_f1", input=path, output=tmp_path / "f1.json")
    assert code == 0, err
    found = json.loads((tmp_path / "f1.json").read_text())
    assert found["schema"] == {"name": "verifier_f1", "version": 1}
    assert found["solutions"][1] == {"id": "gsm8k-1", "label": 1, "found": 1}
    assert [row["found"] for row in found["solutions"]] == [-1, 1, -1, -1]
    assert (found["error_accuracy"], found["correct_accuracy"], found["errors"]) == (0.5, 1.0, 2)
    assert abs(found["f1"] - 2 / 3) < 1e-12
    assert "0.667" in out


def test_of_one_question_there_is_no_interval(program, write, tmp_path):
    path = write("p.jsonl", [{**row, "problem": "the same"} for row in ROWS])
    code, out, err = program("verifier_f1", input=path, output=tmp_path / "f1.json")
    assert code == 0, err
    found = json.loads((tmp_path / "f1.json").read_text())
    assert (found["f1_low"], found["f1_high"]) == (None, None)
    assert "0.667" in out
    assert "nan" not in out


def test_the_exact_checker_finds_every_planted_error(program, write, tmp_path):
    rows = []
    rng = random.Random(0)
    for i, problem in enumerate(itertools.islice(TASK.problems("test", 2), 8)):
        steps = TASK.solve(problem, rng, TASK.mix)
        record = {"id": str(i), "problem": problem.text, "steps": steps, "label": -1}
        at = rng.randrange(len(steps))
        start, value = steps[at].rsplit(" ", 1)
        wrong = [*steps[:at], f"{start} {int(value) + 1}", *steps[at + 1 :]]
        rows += [record, record | {"id": f"{i}x", "steps": wrong, "label": at}]
    path = write("p.jsonl", rows)
    code, _, err = program(
        "verifier_f1", input=path, verifier="exact", model=TASK.policy_path, output=tmp_path / "f1.json"
    )
    assert code == 0, err
    assert json.loads((tmp_path / "f1.json").read_text())["f1"] == 1.0


def test_a_checkpoint_judges(program, write, tmp_path, monkeypatch):
    from caspo_jax.steps import judge

    asked = []
    monkeypatch.setattr(judge, "parse_verdict", lambda reply: asked.append(reply) or "wrong")
    problem = next(TASK.problems("test", 2))
    steps = TASK.solve(problem, random.Random(0), TASK.mix)
    path = write("p.jsonl", [{"id": "a", "problem": problem.text, "steps": steps, "label": 0}])
    (tmp_path / "prompt.txt").write_text("{question} {prefix} {step}")
    code, out, err = program(
        "verifier_f1",
        input=path,
        verifier="judge",
        judge=TASK.policy_path,
        judge_prompt=tmp_path / "prompt.txt",
        batch_size=8,
        output=tmp_path / "f1.json",
    )
    assert code == 0, err
    assert "judge on" in out
    assert any(
        "answer:" in reply for reply in asked
    )  # it was asked something, and said what it says to everything
    found = json.loads((tmp_path / "f1.json").read_text())
    assert (found["verifier"], found["solutions"][0]["found"]) == ("judge", 0)


def test_bad_input(program, write):
    path, empty = write("p.jsonl", ROWS), write("empty.jsonl", [])
    for flags, word in (
        ({"input": empty}, "no solution in it"),
        ({"input": path, "verifier": "exact"}, "--model"),
        ({"input": path, "verifier": "rollouts"}, "gold answers"),
        ({"input": path, "verifier": "judge"}, "--judge"),
        ({"input": write("q.jsonl", [{"id": "a", "problem": "x", "steps": ["y"]}])}, "label"),
    ):
        code, _, err = program("verifier_f1", **flags)
        assert code == 1
        assert word in err
        assert err.count("\n") == 1


def test_a_file_of_somebody_else_s_is_left_and_its_own_replaced(program, write, tmp_path):
    flags = {"input": write("p.jsonl", ROWS), "output": tmp_path / "f1.json"}
    flags["output"].write_text("mine")
    code, _, err = program("verifier_f1", **flags)
    assert (code, err.count("\n")) == (1, 1)
    assert "no manifest beside it" in err
    assert flags["output"].read_text() == "mine"
    assert not (tmp_path / "f1.json.manifest.json").exists()
    assert program("verifier_f1", **flags, overwrite="true")[0] == 0
    assert program("verifier_f1", **flags)[0] == 0  # its own now
    assert len(json.loads(flags["output"].read_text())["solutions"]) == len(ROWS)
    write("p.jsonl", ROWS[:2])
    code, _, err = program("verifier_f1", **flags)  # figures of other solutions
    assert (code, err.count("\n")) == (1, 1)
    assert "the contents changed" in err
    flags["output"].unlink()  # a manifest by itself protects nothing
    assert program("verifier_f1", **flags)[0] == 0
    manifest = json.loads((tmp_path / "f1.json.manifest.json").read_text())
    assert manifest["counts"] == {"solutions": 2, "steps": sum(len(row["steps"]) for row in ROWS[:2])}
