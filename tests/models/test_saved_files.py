"""The files of a saved folder beside the numbers: shards and their index, settings of decoding and of caspo."""

import itertools
import json

import pytest
from flax import nnx

from caspo_jax.errors import UserError
from caspo_jax.models import Decoder, ModelConfig, load_caspo_json, load_pretrained, save_pretrained
from tests.models.conftest import tensors


def header(path):
    """Of a safetensors file, in its order: shapes and offsets by name."""
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_shards_are_as_full_as_they_may_be(golden, tmp_path):
    model, _ = load_pretrained(golden / "llama_biases_yarn_fp32")
    parts = tensors(golden / "llama_biases_yarn_fp32").values()
    total = sum(part.nbytes for part in parts)
    save_pretrained(model, None, tmp_path / "one", max_shard_bytes=total)
    assert header(tmp_path / "one" / "model.safetensors")["__metadata__"] == {"format": "pt"}
    for most in (total - 1, total // 3, 1):
        save_pretrained(model, None, tmp_path / "m", max_shard_bytes=most)
        files = sorted((tmp_path / "m").glob("model-*.safetensors"))
        assert len(files) > 1
        sizes = [
            [
                end - start
                for name, part in header(file).items()
                if name[0] != "_"
                for start, end in [part["data_offsets"]]
            ]
            for file in files
        ]
        assert all(sum(shard) <= most or len(shard) == 1 for shard in sizes)
        assert all(sum(shard) + following[0] > most for shard, following in itertools.pairwise(sizes))
        index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
        assert index["metadata"] == {
            "total_parameters": sum(part.size for part in parts),
            "total_size": total,
        }


@pytest.mark.parametrize(
    "known, written",
    [
        ({}, {}),
        ({"eos_token_ids": (3,), "pad_token_id": 0}, {"eos_token_id": 3, "pad_token_id": 0}),
        ({"eos_token_ids": (3, 4), "bos_token_id": 1}, {"eos_token_id": [3, 4], "bos_token_id": 1}),
    ],
)
def test_a_model_of_ones_own_is_saved_with_the_ids_that_it_knows(tmp_path, known, written):
    config = ModelConfig("llama", 12, 8, 16, 1, 2, 1, 4, **known)
    save_pretrained(Decoder(config, rngs=nnx.Rngs(0)), None, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text()) == written
    for path in (tmp_path / "m", tmp_path / "m" / "config.json"):
        assert ModelConfig.from_hf(path).eos_token_ids == config.eos_token_ids


def test_caspo_json_and_extra_files(golden, tmp_path):
    model, _ = load_pretrained(golden / "llama_biases_yarn_fp32")
    assert load_caspo_json(golden / "llama_biases_yarn_fp32") == {}
    extra = {"notes.md": "α\n", "blob": b"\x00\xff", "more.json": {"a": 1}}
    save_pretrained(model, None, tmp_path / "m", caspo={"step_delimiter": "\n"}, extra_files=extra)
    assert load_caspo_json(tmp_path / "m") == {"step_delimiter": "\n"}
    for settings in (None, {}):
        save_pretrained(model, None, tmp_path / "bare", caspo=settings)
        assert (tmp_path / "bare" / "caspo.json").exists() == (settings is not None)
    assert (tmp_path / "m" / "notes.md").read_text(encoding="utf-8") == "α\n"
    assert (tmp_path / "m" / "blob").read_bytes() == b"\x00\xff"
    assert json.loads((tmp_path / "m" / "more.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    "key, value",
    [
        ("threshold", "0.8"),
        ("threshold", None),
        ("threshold", True),
        ("threshold", float("nan")),
        ("confidence", ["entropy"]),
        ("confidence", None),
        ("step_delimiter", 5),
        ("step_delimiter", ""),
        ("step_delimiter", None),
        ("task", {"name": "graph"}),
    ],
)
def test_values_of_caspo_json_are_refused_in_the_files_name(golden, tmp_path, key, value):
    (tmp_path / "caspo.json").write_text(json.dumps({"mine": None, key: value}))
    with pytest.raises(UserError) as error:
        load_caspo_json(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'caspo.json'}: {key} must be ")
    model, _ = load_pretrained(golden / "llama_biases_yarn_fp32")
    with pytest.raises(UserError, match=f"caspo.json: {key} must be "):
        save_pretrained(model, None, tmp_path / "m", caspo={key: value})
    assert not (tmp_path / "m").exists()


def test_what_caspo_json_may_hold_comes_back_as_it_was(tmp_path):
    settings = {
        "step_delimiter": "\n",
        "confidence": "entropy",
        "threshold": 1,
        "task": "graph",
        "mine": [None],
    }
    (tmp_path / "caspo.json").write_text(json.dumps(settings))
    assert load_caspo_json(tmp_path) == settings
