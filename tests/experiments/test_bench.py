"""The benchmarks' arithmetic, their turns and their workers; full runs at small settings are marked slow."""

import json
import sys

import pytest

from caspo_jax.compile_check import model_shape
from caspo_jax.errors import UserError
from experiments import (
    bench_compile,
    bench_decode,
    bench_flags,
    bench_load,
    bench_model,
    bench_process,
    bench_train,
)
from experiments.bench_model import Shape, Workload
from tests.experiments.test_bad_input import one_line
from tests.shapes import parameter_count


def test_turns_go_a_b_b_a():
    order = []
    sides = {name: (lambda name=name: order.append(name) or {"seconds": len(order)}) for name in "ab"}
    results = bench_process.in_turns(sides, 2)
    assert "".join(order) == "abbaabba"
    assert [run["seconds"] for run in results["b"]] == [2, 3, 6, 7]
    assert bench_process.median_of(results["a"], "seconds") == 4.5
    ratio = bench_process.ratio_of([{"s": 1}, {"s": 2}, {"s": 4}], [{"s": 3}, {"s": 4}, {"s": 4}], "s")
    assert ratio == {"median": 2, "least": 1, "most": 3}


def test_settings_are_chosen_by_several_runs_of_those_that_are_near():
    """`b` starts slowly and was disturbed once, and is the fastest; `c` is far off and not tried again."""
    times = {"a": [9, 1.1, 1.1, 1.2, 1.1], "b": [9, 1.6, 1.3, 1.0, 1.0], "c": [9, 2.0, 2.0]}
    found = bench_train.fastest([{"x": name} for name in times], lambda settings: times[settings["x"]].pop(0))
    assert found == {"x": "b"}
    assert not any(times.values())
    alone = {"a": [9, 1.0, 1.0]}
    assert bench_train.fastest([{"x": "a"}], lambda settings: alone[settings["x"]].pop(0)) == {"x": "a"}


def test_a_table_is_markdown():
    text = bench_process.table(["", "x"], [["a", "1"], ["long", "22"]])
    assert text.splitlines() == ["|      | x  |", "| ---- | -- |", "| a    | 1  |", "| long | 22 |"]


def test_a_worker_that_dies_says_why():
    with pytest.raises(UserError, match="no such interpreter"):
        bench_process.Worker("/nowhere/python", "json.tool")
    worker = bench_process.Worker(sys.executable, "experiments.no_such_worker")
    with pytest.raises(UserError, match="no_such_worker"), worker:
        worker.ask(do="ready")


PEERS = {"bench_train": "trl", "bench_decode": "tunix", "bench_load": "transformers"}


@pytest.fixture
def nothing_is_measured(monkeypatch):
    """Whatever comes before the first run ends the test if it is reached."""

    def make(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(bench_model, "make_checkpoint", make)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_not_there_is_found_before_the_work(program, tmp_path, nothing_is_measured, name):
    flags = {"peer": PEERS[name], "output": tmp_path / "out.json"}
    one_line(program(name, **flags, peer_python="/nowhere/python"), "--peer_python=/nowhere/python")
    python = tmp_path / "python"  # one that lacks the peer
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    one_line(program(name, **flags, peer_python=python), f"--peer={PEERS[name]}", f"lacks {PEERS[name]}")
    if name == "bench_train":
        one_line(program(name, **flags, peer_python=python, lora_rank=2), "lacks trl, torch, peft")
    python.write_text("#!/bin/sh\nexit 3\n")
    one_line(program(name, **flags, peer_python=python), "no Python interpreter")
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


@pytest.mark.parametrize("name", PEERS)
def test_without_a_peer_this_library_is_measured_alone(program, nothing_is_measured, name):
    with pytest.raises(AssertionError, match="the work has begun"):
        program(name)


@pytest.mark.parametrize("name", PEERS)
def test_figures_leave_a_file_of_somebody_else_s(program, tmp_path, nothing_is_measured, name):
    (tmp_path / "mine.json").write_text("mine")
    one_line(program(name, peer="none", output=tmp_path / "mine.json"), "mine.json", "--overwrite")
    assert (tmp_path / "mine.json").read_text() == "mine"


class Compiler:
    """A worker that answers at once."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, **_):
        return {"seconds": 1.0, "temporaries": 1}


def test_figures_replace_their_own_of_the_same_settings(program, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_compile, "Worker", Compiler)
    output = tmp_path / "out.json"
    for _ in range(2):
        assert program("bench_compile", output=output)[0] == 0
    written = output.read_bytes()
    assert json.loads(written)["schema"] == {"name": "bench_compile", "version": 1}
    one_line(program("bench_compile", output=output, rows=8), "rows: 4 then, 8 now")
    assert output.read_bytes() == written
    assert program("bench_compile", output=output, rows=8, overwrite="true")[0] == 0
    output.unlink()  # and a manifest by itself protects nothing
    assert program("bench_compile", output=output, rows=4)[0] == 0
    manifest = json.loads((tmp_path / "out.json.manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["config"]["rows"] == 4


def test_a_width_that_heads_do_not_fill_is_refused(program):
    for name in ("bench_compile", "bench_train"):
        one_line(program(name, width=50), "--width=50", "multiple of 32")


def test_a_batch_of_any_size_has_a_micro_batch():
    for size, tries in ((8, [2, 4, 8]), (15, [15])):
        found = bench_train.settings_to_try("trl", Workload("x", [], size), "cpu")
        assert [settings["micro"] for settings in found] == tries


def test_every_peer_has_its_packages():
    modules = {*bench_train.MODULES, *bench_decode.MODULES, *bench_load.MODULES}
    assert set(bench_flags.NEEDS) == modules - {"caspo_jax"}


@pytest.mark.parametrize("name", PEERS)
def test_another_version_is_named_by_its_folder(program, tmp_path, nothing_is_measured, name):
    one_line(program(name, peer="checkout"), "--peer_checkout=FOLDER")
    one_line(program(name, peer="none", peer_checkout=tmp_path), "--peer=checkout")
    one_line(program(name, peer="checkout", peer_checkout=tmp_path), f"--peer_checkout={tmp_path}", "has no")


def test_another_version_runs_its_own_code(tmp_path):
    """The folder's program, in that folder: what it imports is the folder's too."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    (tmp_path / "experiments" / "where.py").write_text(
        "import json\nfor line in iter(input, ''): print(json.dumps({'file': __file__}), flush=True)\n"
    )
    with bench_process.Worker(sys.executable, "experiments.where", folder=tmp_path) as worker:
        assert worker.ask(do="ready") == {"file": str(tmp_path / "experiments" / "where.py")}


SHAPE = Shape(100, 32, 48, 3, 2, 1, 16)


def flops(tokens, scored, keys):
    entries = 3 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)
    assert SHAPE.layer_parameters == entries
    return 4 * (2 * entries * tokens + 2 * 100 * 32 * scored + 4 * 3 * 2 * 16 * keys)


def test_a_published_shape_has_the_models_parameters():
    config = model_shape("qwen2.5-0.5b")
    shape = Shape.of(config)
    assert (shape.model_type, shape.qkv_bias, shape.tie_word_embeddings) == ("qwen2", True, True)
    small = 24 * (2 * 896 + 896 + 2 * 128) + 896  # norms and biases
    matrices = shape.layer_parameters + shape.vocab_size * shape.hidden_size
    assert matrices + small == parameter_count(config)


def below(first, last):
    """Keys seen by the queries at depths first..last, from 1."""
    return sum(range(first, last + 1))


def test_useful_work_counts_each_distinct_token_once():
    pair = {"prompt": [20, 21], "prefix": [], "chosen": [22, 23, 24], "rejected": [22, 30]}
    # prompt 2, chosen 3, and one token of the rejected step: its first is the chosen step's.
    want = flops(6, 4, below(1, 5) + 4)
    assert bench_model.useful_flops(SHAPE, Workload("x", [pair], 1)) == want
    # Another update reads it again.
    assert bench_model.useful_flops(SHAPE, Workload("x", [pair, pair], 1)) == 2 * want
    assert bench_model.useful_flops(SHAPE, Workload("x", [pair, pair], 2)) == want


def test_the_workloads_are_what_they_are_called():
    unrelated = bench_model.unrelated_pairs(3, 10_000, prompt=5, response=7)
    assert unrelated.row_tokens == 3 * 2 * 12
    assert bench_model.useful_flops(SHAPE, unrelated) == flops(
        3 * 19, 3 * 14, 3 * (below(1, 5) + 2 * below(6, 12))
    )
    uneven = bench_model.unrelated_pairs(50, 10_000, prompt=5, response=12, uneven=True)
    lengths = [len(pair[side]) for pair in uneven.pairs for side in ("chosen", "rejected")]
    assert (uneven.name, set(lengths)) == ("uneven", set(range(2, 13)))
    shortest = bench_model.unrelated_pairs(50, 10_000, response=3, uneven=True)
    assert min(len(pair["chosen"]) for pair in shortest.pairs) == 1
    steps = bench_model.step_pairs(2, 10_000, prompt=5, steps=4, step=3)
    assert len(steps.pairs) == 8
    assert steps.batch_size == 4
    assert [len(p["prefix"]) for p in steps.pairs] == [0, 3, 6, 9] * 2
    assert steps.pairs[2]["prefix"] == steps.pairs[0]["chosen"] + steps.pairs[1]["chosen"]
    trunk, branches = below(1, 17), sum(below(6 + 3 * i, 8 + 3 * i) for i in range(4))
    assert bench_model.useful_flops(SHAPE, steps) == flops(2 * (17 + 12), 2 * 24, 2 * (trunk + branches))
    questions = bench_model.question_pairs(3, 10_000, prompt=5, steps=8, step=3)
    assert (len(questions.pairs), questions.batch_size) == (3 * 8 * 2, 2 * 8 * 2)
    assert [len({tuple(p["prompt"]) for p in questions.pairs[i : i + 16]}) for i in (0, 16, 32)] == [1] * 3
    first, second = questions.pairs[:2]  # of one trace
    assert second["prefix"][: len(first["prefix"]) + 3] == first["prefix"] + first["chosen"]
    assert {len(p["prefix"]) // 3 for p in questions.pairs} <= set(range(8))


@pytest.mark.slow
def test_load_is_measured(program, tmp_path):
    code, out, err = program(
        "bench_load",
        vocab_size=256,
        width=64,
        layers=2,
        peer="none",
        cycles=1,
        output=tmp_path / "load.json",
        quiet="true",
    )
    assert code == 0, err
    assert "beyond parameters mib" in out
    measured = json.loads((tmp_path / "load.json").read_text())
    assert measured["schema"] == {"name": "bench_load", "version": 1}
    runs = measured["runs"]["caspo_jax"]
    entries = Shape(256, 64, 256, 2, 2, 1, 32).layer_parameters + 256 * 64 + 2 * (2 * 64 + 2 * 32) + 64
    assert [run["parameter_bytes"] for run in runs] == [4 * entries] * 2
    assert all(run["seconds"] > 0 for run in runs)


@pytest.mark.slow
def test_training_is_measured(program, tmp_path):
    code, out, err = program(
        "bench_train",
        vocab_size=256,
        width=32,
        layers=2,
        pairs=4,
        batch_size=2,
        prompt_length=8,
        response_length=8,
        traces=1,
        steps=3,
        step_length=4,
        cycles=1,
        output=tmp_path / "train.json",
        quiet="true",
    )
    assert code == 0, err
    assert "of matmul rate" in out
    measured = json.loads((tmp_path / "train.json").read_text())
    assert measured["schema"] == {"name": "bench_train", "version": 1}
    assert measured["machine"]["matmul_flops"] > 1e8
    for name, updates in (("pairs", 2), ("steps", 1)):
        for run in measured["results"][name]["runs"]["caspo_jax"]:
            assert run["updates"] == updates
            assert abs(run["first_loss"] - 0.693147) < 1e-4
