"""Adapters through the programs: trained, exported whole and for PEFT, merged again; the reference computed once."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from caspo_jax.records import pair_to_record
from caspo_jax.types import Pair
from tests.experiments.conftest import GOLDENS

MODEL = GOLDENS / "qwen3_tied_fp32"
TRAIN = {
    "train.learning_rate": 1e-2,
    "train.batch_size": 4,
    "train.min_length": 32,
    "train.tensorboard": "false",
    "preset": "paper",
    "lora_rank": 2,
    "lora_targets": "q_proj,down_proj",
}


@pytest.fixture
def pairs(write):
    rng = np.random.default_rng(0)

    def ids():
        return tuple(rng.integers(3, 500, 5).tolist())

    made = [
        Pair(
            id=str(i),
            kind="wrong",
            prompt="",
            prefix="",
            chosen="",
            rejected="",
            prompt_ids=ids(),
            prefix_ids=(),
            chosen_ids=ids(),
            rejected_ids=ids(),
            ends_trace=(False, False),
        )
        for i in range(4)
    ]
    return write("pairs.jsonl", [pair_to_record(pair) for pair in made])


def test_adapters_from_training_to_a_policy(program, pairs, tmp_path):
    cache = tmp_path / "cache"
    flags = {"model": MODEL, "pairs_file": pairs, "reference_cache": cache, **TRAIN}
    code, _, err = program("train", **flags, out_dir=tmp_path / "run")
    assert code == 0, err
    (entry,) = cache.iterdir()
    written = entry.stat().st_mtime_ns
    code, _, err = program("train", **flags, out_dir=tmp_path / "other", **{"train.loss.beta": 0.3})
    assert code == 0, err
    assert [(p, p.stat().st_mtime_ns) for p in cache.iterdir()] == [(entry, written)]

    exports = {
        "policy": {"run": tmp_path / "run"},
        "adapter": {"run": tmp_path / "run", "format": "peft"},
        "merged": {"adapter": tmp_path / "adapter"},
    }
    for name, given in exports.items():
        for _ in range(2):  # the second finds it done
            code, _, err = program("export", model=MODEL, output=tmp_path / name, **given)
            assert code == 0, err
    base, policy, merged = (
        load_file(folder / "model.safetensors")
        for folder in (MODEL, tmp_path / "policy", tmp_path / "merged")
    )
    changed = {name for name, tensor in base.items() if np.abs(tensor - policy[name]).max() > 1e-6}
    assert changed == {name for name in base if "q_proj" in name or "down_proj" in name}
    for name, tensor in policy.items():
        np.testing.assert_array_equal(merged[name], tensor)
    adapters = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert adapters["base_model.model.model.layers.2.mlp.down_proj.lora_A.weight"].shape == (2, 128)
    assert len(adapters) == 3 * 2 * 2


def test_flags_that_do_not_go_together(program, pairs, tmp_path):
    given = {"model": MODEL, "pairs_file": pairs, "out_dir": tmp_path / "run", "preset": "paper"}
    for name, more, word in (
        ("train", {"lora_alpha": 3}, "--lora_rank"),
        ("train", {"lora_rank": 2, "lora_targets": "lm_head"}, "lm_head"),
        ("train", {"train.remat": "some"}, "full, dots"),
        ("train", {"lora_rank": 100_000}, "--lora_rank"),
    ):
        code, _, err = program(name, **given, **more)
        assert code == 1
        assert word in err
        assert err.count("\n") == 1
        assert not (tmp_path / "run").exists()
    code, _, err = program("export", model=MODEL, output=tmp_path / "out")
    assert code == 1
    assert "--adapter" in err


def test_rounds_refuse_a_rank_before_they_sample(program, write, tmp_path):
    questions = write("questions.jsonl", [{"id": "q", "question": "1 + 1", "gold": "2"}])
    flags = {"model": MODEL, "input": questions, "out_dir": tmp_path / "run", "max_new_tokens": 4}
    code, _, err = program("caspo", **flags, verifier="equations", lora_rank=65)
    assert code == 1
    assert "rank=65" in err
    assert not (tmp_path / "run").exists()


def test_overwrite_removes_the_run_and_leaves_what_lies_beside_it(program, pairs, tmp_path):
    folder = tmp_path / "exp_v1.0"  # the dot makes it no file
    folder.mkdir()
    given = pairs.rename(folder / "pairs.jsonl")
    text = given.read_bytes()
    flags = {"model": MODEL, "pairs_file": given, "out_dir": folder, **TRAIN}
    code, _, err = program("train", "--overwrite", **flags)
    assert code == 0, err
    assert json.loads((folder / "manifest.json").read_text())["complete"]
    assert {p.name for p in tmp_path.iterdir()} == {folder.name}
    code, _, err = program("train", "--overwrite", **flags, seed=5)
    assert code == 0, err
    assert given.read_bytes() == text
    assert json.loads((folder / "run.json").read_text())["config"]["seed"] == 5
    assert (folder / "metrics.jsonl").read_text().count("\n") == 1
    code, _, err = program("export", model=MODEL, run=folder, output=tmp_path / "policy_v1.5")
    assert code == 0, err
    assert (tmp_path / "policy_v1.5" / "manifest.json").is_file()


@pytest.mark.parametrize("written", ['{"program": "evaluate", "config": {}}', "[]", "{"])
def test_overwrite_leaves_other_programs_outputs(program, pairs, tmp_path, written):
    manifest = tmp_path / "run" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text(written)
    code, _, err = program(
        "train", "--overwrite", model=MODEL, pairs_file=pairs, out_dir=tmp_path / "run", **TRAIN
    )
    assert code == 1
    assert "of no training run" in err
    assert manifest.read_text() == written
    assert [p.name for p in manifest.parent.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    "given, seed, size",
    [
        ({}, 0, 64),
        ({"seed": 3, "batch_size": 2}, 3, 2),
        ({"train.seed": 3, "train.batch_size": 4}, 3, 4),
        ({"seed": 3, "batch_size": 4, "train.seed": 3, "train.batch_size": 4}, 3, 4),
    ],
)
def test_seed_and_batch_size_are_other_names_of_trainings_own(program, pairs, tmp_path, given, seed, size):
    flags = {"model": MODEL, "pairs_file": pairs, "out_dir": tmp_path / "run", "preset": "paper"}
    code, _, err = program("train", **flags, **given, lora_rank=1, **{"train.tensorboard": "false"})
    assert code == 0, err
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["seed"], config["batch_size"]) == (seed, size)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"batch_size": 4, "train.batch_size": 8}, ("--batch_size=4", "--train.batch_size=8")),
        ({"seed": 0, "train.seed": 3}, ("--seed=0", "--train.seed=3")),
    ],
)
def test_two_values_of_one_setting_are_refused(program, pairs, tmp_path, given, words):
    flags = {"model": MODEL, "pairs_file": pairs, "out_dir": tmp_path / "run", "preset": "paper"}
    code, _, err = program("train", **flags, **given)
    assert code == 1
    assert all(word in err for word in words)
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
