"""Bad input: one clear line on stderr, exit code 1, nothing written is lost."""

import json
import shutil

import pytest

from tests.experiments.conftest import GOLDENS

MODEL = GOLDENS / "qwen3_tied_fp32"


def one_line(result, *words):
    code, _, err = result
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert str(word) in err, err


@pytest.fixture
def question(write):
    return write("in.jsonl", [{"id": "a", "prompt_ids": [5, 6, 7]}])


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a golden checkpoint to damage."""
    return shutil.copytree(MODEL, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("expected.npz"))


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def generate(program, tmp_path, question, model=MODEL, **more):
    return program(
        "generate",
        model=model,
        input=question,
        **({"max_new_tokens": 4, "output": tmp_path / "out.jsonl"} | more),
    )


def test_missing_model_folder(program, tmp_path, question):
    one_line(generate(program, tmp_path, question, model=tmp_path / "nowhere"), "nowhere")


def test_unreadable_model_folder(program, tmp_path, question, checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"\x00" * 16)
    one_line(generate(program, tmp_path, question, model=checkpoint), "model.safetensors")


def test_unknown_architecture(program, tmp_path, question, checkpoint):
    change_config(checkpoint, architectures=["MambaForCausalLM"], model_type="mamba")
    one_line(generate(program, tmp_path, question, model=checkpoint), "amba")


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "spiral"])
def test_unknown_rope_type(program, tmp_path, question, checkpoint, kind):
    change_config(checkpoint, rope_parameters={"rope_type": kind, "rope_theta": 1e4, "factor": 2.0})
    one_line(generate(program, tmp_path, question, model=checkpoint), kind)


@pytest.mark.parametrize("damage", ["missing", "extra", "misshaped"])
def test_damaged_tensors_are_named(program, tmp_path, question, checkpoint, damage):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        name = "model.layers.1.mlp.side_proj.weight"
        tensors[name] = tensors["model.layers.1.mlp.up_proj.weight"].copy()
    else:
        tensors[name] = tensors[name][:-1].copy()
    save_file(tensors, checkpoint / "model.safetensors")
    one_line(generate(program, tmp_path, question, model=checkpoint), name)


def test_pickle_checkpoint(program, tmp_path, question, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    one_line(generate(program, tmp_path, question, model=checkpoint), "pytorch_model.bin", "safetensors")


def test_missing_input_file(program, tmp_path):
    one_line(generate(program, tmp_path, tmp_path / "absent.jsonl"), "absent.jsonl")


def test_malformed_line(program, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": "a", "prompt_ids": [5]}\n{"id": "b", \n')
    one_line(generate(program, tmp_path, path), "in.jsonl:2")


@pytest.mark.parametrize(
    "record, word",
    [
        ({"id": "a", "question": " "}, "empty"),
        ({"id": "a", "prompt_ids": []}, "empty"),
        ({"id": "a", "prompt_ids": [5, 100000]}, "100000"),
        ({"id": "a"}, "in.jsonl:1"),
    ],
)
def test_bad_questions(program, tmp_path, write, record, word):
    one_line(generate(program, tmp_path, write("in.jsonl", [record])), word)


def test_prompt_longer_than_the_context(program, tmp_path, write):
    given = write("in.jsonl", [{"id": "long", "prompt_ids": [5] * 100_000}])
    one_line(generate(program, tmp_path, given), "long", "context")


def test_same_id_twice(program, tmp_path, write):
    given = write("in.jsonl", [{"id": "a", "prompt_ids": [5]}, {"id": "a", "prompt_ids": [6]}])
    one_line(generate(program, tmp_path, given), "in.jsonl:2: id 'a' was used before, at", "in.jsonl:1")


def test_question_without_gold_where_one_is_needed(program, tmp_path, write):
    given = write("in.jsonl", [{"id": "a", "prompt_ids": [5]}])
    result = program("caspo", model=MODEL, input=given, out_dir=tmp_path / "run", verifier="gold")
    one_line(result, "in.jsonl:1", "gold")


def test_a_gold_field_that_no_question_has(program, tmp_path, write):
    given = write("in.jsonl", [{"id": "a", "prompt_ids": [5], "gold": "1"}])
    one_line(generate(program, tmp_path, given, gold_field="solution"), "'solution'", "--gold_field")
    assert not (tmp_path / "out.jsonl.manifest.json").exists()
    flags = {"model": MODEL, "input": given, "out_dir": tmp_path / "run", "verifier": "gold"}
    one_line(program("caspo", **flags, gold_field="solution"), "in.jsonl:1", "`solution`")


def test_a_file_where_a_folder_should_be(program, tmp_path, question):
    for output in (question / "o.jsonl", question / "deep" / "o.jsonl"):
        one_line(generate(program, tmp_path, question, output=output), "in.jsonl: a file is where")


@pytest.mark.parametrize(
    "flags, word",
    [
        ({"strategy": "greedy", "temperature": 0.7}, "temperature"),
        ({"strategy": "sample", "temperature": 0, "num_samples": 4}, "num_samples"),
        ({"strategy": "cat", "num_samples": 4}, "num_branches"),
        ({"strategy": "sample", "trees": "t.jsonl"}, "trees"),
        ({"strategy": "cat", "temperature": 0.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"mesh": "data:64"}, "64"),
    ],
)
def test_contradictory_flags(program, tmp_path, question, flags, word):
    one_line(generate(program, tmp_path, question, **flags), word)


def test_score_needs_tokens(program, tmp_path, write):
    for tokens in ({}, {"token_ids": [True]}, {"token_ids": [6, -1]}, {"token_ids": "6"}, {"token_ids": []}):
        given = write("in.jsonl", [{"id": "a", "prompt_ids": [5], **tokens}])
        result = program("score", model=MODEL, input=given, output=tmp_path / "o.jsonl")
        one_line(result, "in.jsonl:1", "token" if tokens == {"token_ids": []} else "`token_ids`")


def test_training_without_pairs(program, tmp_path, write):
    given = write("pairs.jsonl", [])
    result = program("train", model=MODEL, pairs_file=given, out_dir=tmp_path / "run", preset="paper")
    one_line(result, "pairs.jsonl", "no pairs")


def test_export_of_a_folder_without_a_run(program, tmp_path):
    (tmp_path / "run").mkdir()
    one_line(program("export", model=MODEL, run=tmp_path / "run", output=tmp_path / "p"), "no training run")
