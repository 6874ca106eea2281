"""What a checkpoint's files may hold: which matrices may be missing or twice there, and what is refused by name."""

import json
import re
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from caspo_jax.errors import UserError
from caspo_jax.models import load_pretrained, save_pretrained
from caspo_jax.models.checkpoint import Checkpoint
from tests.models.conftest import same_bits, tensors


def rewrite(folder, change):
    """Applies `change` to the tensors of a single-file checkpoint."""
    found = tensors(folder)
    change(found)
    save_file(found, str(folder / "model.safetensors"), {"format": "pt"})


def drop(name):
    return lambda found: found.pop(name)


def put(name, value):
    return lambda found: found.__setitem__(name, value)


@pytest.mark.parametrize(
    "change, words",
    [
        (drop("model.layers.1.mlp.up_proj.weight"), ["model.layers.1.mlp.up_proj.weight", "missing"]),
        (drop("model.norm.weight"), ["model.norm.weight", "missing"]),
        (put("model.layers.3.mlp.up_proj.weight", np.ones((2, 2), np.float32)), ["layers.3", "not part of"]),
        (put("score.weight", np.ones((2, 2), np.float32)), ["score.weight", "not part of"]),
        (
            put("model.layers.0.self_attn.k_proj.weight", np.ones((64, 32), np.float32)),
            ["model.layers.0.self_attn.k_proj.weight", "[64, 32]", "[32, 64]"],
        ),
        (put("model.norm.weight", np.ones(64, np.int8)), ["model.norm.weight", "I8"]),
        (put("model.layers.0.mlp.inv_freq", np.ones(2, np.float32)), ["inv_freq", "not part of"]),
        (
            lambda found: [
                found.pop(f"model.layers.{layer}.mlp.{name}_proj.weight")
                for layer in (0, 1)
                for name in ("up", "down")
            ],
            ["'model.layers.0.mlp.up_proj.weight' is missing (and 3 more)"],
        ),
        (
            lambda found: found.update({f"score.{n}": np.ones(2, np.float32) for n in "cab"}),
            ["'score.a' is not part of this model (and 2 more)"],
        ),
    ],
)
def test_wrong_tensors_are_named(copy_of, change, words):
    folder = copy_of("llama31_untied_fp32")
    rewrite(folder, change)
    with pytest.raises(UserError) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("layers", [10**6, 10**9, 10**18])
def test_more_layers_than_any_memory_holds_are_refused_at_once(copy_of, layers):
    folder = copy_of("llama31_untied_fp32")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    started = time.monotonic()
    with pytest.raises(UserError, match=f"num_hidden_layers {layers}, but"):
        load_pretrained(folder)
    assert time.monotonic() - started < 30.0


@pytest.mark.parametrize(
    "outside", ["../other.safetensors", "/tmp/other.safetensors", "", "sub/x.safetensors"]
)
def test_shards_lie_in_their_folder(copy_of, outside):
    folder = copy_of("qwen2_untied_bf16_sharded")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": outside}}))
    with pytest.raises(UserError, match=f"lists '{outside}'"):
        load_pretrained(folder)


def test_known_redundant_tensors_are_allowed(copy_of):
    folder = copy_of("qwen3_tied_fp32")
    embed = tensors(folder)["model.embed_tokens.weight"]
    rewrite(folder, put("lm_head.weight", embed))
    rewrite(folder, put("model.layers.0.self_attn.rotary_emb.inv_freq", np.ones(16, np.float32)))
    load_pretrained(folder)
    rewrite(folder, put("score.weight", embed))  # and no other beside them
    with pytest.raises(UserError, match=r"score\.weight' is not part of this model"):
        load_pretrained(folder)
    rewrite(folder, drop("score.weight"))
    embed[0, 0] = 0.0
    rewrite(folder, put("model.embed_tokens.weight", embed))
    negative = embed.copy()
    negative[0, 0] = -0.0
    for other in (embed + 1, negative, embed.astype(ml_dtypes.bfloat16)):  # equal is bit for bit
        rewrite(folder, put("lm_head.weight", other))
        with pytest.raises(UserError, match=r"lm_head\.weight"):
            load_pretrained(folder)


def test_large_matrices_are_compared_to_their_last_row(tmp_path):
    tensor = np.zeros((2, 4_194_305), ml_dtypes.bfloat16)  # a row at a time
    other = tensor.copy()
    other[1, -1] = 1
    save_file({"a": tensor, "b": tensor.copy(), "c": other}, str(tmp_path / "model.safetensors"))
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.equal("a", "b")
        assert not checkpoint.equal("a", "c")


def as_output(found):
    found["lm_head.weight"] = found.pop("model.embed_tokens.weight")


def test_a_tied_matrix_may_be_stored_as_the_output_s(copy_of, golden, tmp_path):
    from caspo_jax.sharding import make_mesh

    folder = copy_of("qwen3_tied_fp32")
    rewrite(folder, as_output)
    whole = load_pretrained(golden / "qwen3_tied_fp32")[0]
    for mesh in (None, make_mesh("fsdp:-1")):
        model = load_pretrained(folder, mesh=mesh)[0]
        np.testing.assert_array_equal(model.embed[...], whole.embed[...])
    save_pretrained(model, None, tmp_path / "out")
    assert same_bits(tensors(tmp_path / "out"), tensors(golden / "qwen3_tied_fp32"))
    rewrite(folder, drop("lm_head.weight"))
    with pytest.raises(UserError, match=r"model\.embed_tokens\.weight' is missing"):
        load_pretrained(folder)
    rewrite(folder, put("lm_head.weight", np.ones((4, 4), np.float32)))
    with pytest.raises(UserError, match=r"lm_head\.weight' has shape \[4, 4\]"):
        load_pretrained(folder)


def test_a_tied_matrix_may_be_the_output_s_in_shards(golden, tmp_path):
    model, _ = load_pretrained(golden / "qwen3_tied_fp32")
    folder = tmp_path / "m"
    save_pretrained(model, None, folder, max_shard_bytes=150_000)
    index = folder / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    as_output(listing["weight_map"])
    index.write_text(json.dumps(listing))
    shard = folder / listing["weight_map"]["lm_head.weight"]
    found = load_file(shard)
    as_output(found)
    save_file(found, str(shard), {"format": "pt"})
    assert len(shards(folder)) > 1
    np.testing.assert_array_equal(load_pretrained(folder)[0].embed[...], model.embed[...])


def test_an_untied_checkpoint_needs_both_matrices(copy_of):
    folder = copy_of("llama31_untied_fp32")
    rewrite(folder, drop("model.embed_tokens.weight"))
    with pytest.raises(UserError, match=r"model\.embed_tokens\.weight' is missing"):
        load_pretrained(folder)


def test_a_file_beside_shards_goes_first(copy_of, golden):
    """As in transformers; a save over an older, larger one may have left the shards."""
    folder = copy_of("qwen2_untied_bf16_sharded")
    rewrite(folder, lambda _: None)
    for shard in shards(folder):
        shard.write_bytes(b"old")
    load_pretrained(folder)


def test_a_tensor_in_two_shards_is_named(copy_of):
    folder = copy_of("qwen2_untied_bf16_sharded")
    first, second = shards(folder)[:2]
    both = load_file(second)
    name, tensor = next(iter(load_file(first).items()))
    save_file(both | {name: tensor}, str(second), {"format": "pt"})
    with pytest.raises(
        UserError, match=rf"{second.name}: tensor '{re.escape(name)}' is also in {first.name}"
    ):
        load_pretrained(folder)


def test_double_precision_without_a_named_dtype_is_computed_in_single(copy_of, golden):
    folder = copy_of("qwen3_tied_fp32")
    rewrite(folder, lambda found: found.update({n: t.astype(np.float64) for n, t in found.items()}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": None, "torch_dtype": None}))
    model, _ = load_pretrained(folder)
    whole, _ = load_pretrained(golden / "qwen3_tied_fp32")
    assert (model.dtype, model.config.dtype) == (np.float32, "float32")
    np.testing.assert_array_equal(model.layers.q[...], whole.layers.q[...])


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def test_broken_folders_are_named(copy_of, tmp_path, monkeypatch):
    def refused(folder, *words):
        with pytest.raises(UserError) as error:
            load_pretrained(folder)
        assert "\n" not in str(error.value)
        assert all(word in str(error.value) for word in words), str(error.value)

    refused(tmp_path / "nowhere", "nowhere", "not found")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("some-owner/no-such-model", "some-owner/no-such-model")
    folder = copy_of("qwen2_untied_bf16_sharded")
    refused(folder / "config.json", "is a file")
    index = folder / "model.safetensors.index.json"
    listing = json.loads(index.read_text())

    changed = json.loads(index.read_text())
    changed["weight_map"]["model.norm.weight"] = "model-00001-of-00004.safetensors"
    index.write_text(json.dumps(changed))
    refused(folder, "model.norm.weight", "missing")

    del changed["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(changed))
    refused(folder, "model.norm.weight", "not listed")

    changed["weight_map"]["model.norm.weight"] = "pytorch_model.bin"
    index.write_text(json.dumps(changed))
    refused(folder, "pytorch_model.bin")

    index.write_text(json.dumps({"weight_map": []}))
    refused(folder, "weight_map")

    index.write_text(json.dumps(listing))
    second = shards(folder)[1]
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    refused(folder, second.name)
    second.write_bytes(b"not safetensors")
    refused(folder, second.name)
    second.unlink()
    refused(folder, second.name, "not found")

    for path in [*shards(folder), index]:
        path.unlink()
    refused(folder, "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(folder, "pytorch_model.bin", "pickle")


def test_weights_that_may_not_be_read_are_not_called_missing(tmp_path, monkeypatch):
    """safetensors says "No such file or directory" of them."""
    (tmp_path / "model.safetensors").touch()

    def refused(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=r"cannot read .*/model.safetensors: Permission denied"):
        Checkpoint(tmp_path)
