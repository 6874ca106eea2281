"""Checkpoints loaded and saved: bit for bit, in the dtype that is asked for, whole or not at all."""

import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from caspo_jax.errors import UserError
from caspo_jax.models import (
    Decoder,
    ModelConfig,
    encode_prompt,
    load_pretrained,
    save_pretrained,
)
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.types import Question
from tests.models.conftest import same_bits, tensors


@pytest.mark.parametrize("max_shard_bytes", [10**9, 150_000])
def test_round_trip_is_bit_for_bit(checkpoint, tmp_path, max_shard_bytes):
    model, tokenizer = load_pretrained(checkpoint)
    out = tmp_path / "deep" / "policy"
    save_pretrained(model, tokenizer, out, max_shard_bytes=max_shard_bytes)
    assert same_bits(tensors(checkpoint), tensors(out))
    assert (out / "model.safetensors.index.json").exists() == (max_shard_bytes < 10**9)
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1, "weights readable by whoever may read the configuration"
    again, tokenizer_again = load_pretrained(out)
    assert again.config == model.config
    assert again.dtype == model.dtype
    assert tokenizer_again.chat_template == tokenizer.chat_template
    question = Question("q", question="What is 2+2?\n\n数学")
    assert encode_prompt(tokenizer_again, question) == encode_prompt(tokenizer, question)
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((checkpoint / name).read_text())
    before = json.loads((checkpoint / "config.json").read_text())
    after = json.loads((out / "config.json").read_text())
    ignored = ("transformers_version", "max_window_layers", "pretraining_tp")
    assert {key: after.get(key) for key in before if key not in ignored} == {
        key: value for key, value in before.items() if key not in ignored
    }


def test_saved_dtype_is_as_asked(golden, tmp_path):
    model, _ = load_pretrained(golden / "qwen3_tied_fp32")
    source = tensors(golden / "qwen3_tied_fp32")
    for name, dtype in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16), ("float32", np.float32)):
        save_pretrained(model, None, tmp_path / name, dtype=jnp.dtype(name).type)
        assert same_bits(
            {key: value.astype(dtype) for key, value in source.items()}, tensors(tmp_path / name)
        )
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == name
    half, tokenizer = load_pretrained(tmp_path / "float16")
    assert half.dtype == jnp.float32
    assert tokenizer is None
    with pytest.raises(UserError, match="int8"):
        save_pretrained(model, None, tmp_path / "x", dtype="int8")
    with pytest.raises(UserError, match="float16"):
        load_pretrained(golden / "qwen3_tied_fp32", dtype="float16")


def test_loaded_dtype_is_as_asked(golden):
    folder = golden / "qwen2_untied_bf16_sharded"
    assert load_pretrained(folder)[0].dtype == jnp.bfloat16
    model, _ = load_pretrained(folder, dtype=jnp.float32)
    assert model.dtype == load_pretrained(folder, dtype="float32")[0].dtype == jnp.float32
    for unknown in (jnp.int32, "nothing"):
        with pytest.raises(UserError, match="known: float32, bfloat16"):
            load_pretrained(folder, dtype=unknown)
    kernel = tensors(folder)["model.layers.2.mlp.down_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(model.layers.down[...][2], kernel.T)


def test_a_mesh_may_be_given_by_its_axes(golden):
    folder = golden / "llama_biases_yarn_fp32"
    devices = jax.device_count()
    model, _ = load_pretrained(folder, mesh=f"data:{devices}")
    assert dict(model.mesh.shape) == {"data": devices}
    assert load_pretrained(folder, mesh="")[0].mesh is None
    for wrong in (("data", 1), "rows:1"):
        with pytest.raises(UserError, match=r"mesh.*(data:2,fsdp:4|known: data)"):
            load_pretrained(folder, mesh=wrong)


@pytest.mark.parametrize("named, kept", [([511, 700], (511,)), (700, (511,)), (None, (511,))])
def test_eos_ids_that_cannot_be_emitted_are_left_out(copy_of, caplog, named, kept):
    folder = copy_of("qwen3_tied_fp32")
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_text(
            json.dumps(json.loads((folder / name).read_text()) | {"eos_token_id": named})
        )
    model, tokenizer = load_pretrained(folder)
    assert model.config.eos_token_ids == kept
    assert ("eos_token_id 700 left out: the vocabulary has 512 tokens" in caplog.text) == (named is not None)
    trace = generate(model, tokenizer, ["x"], SampleConfig(max_new_tokens=2), jax.random.key(0))[0]
    assert len(trace.token_ids) <= 2


def test_eos_ids_of_which_none_can_be_emitted_are_refused_in_the_folders_name(copy_of):
    folder = copy_of("qwen3_tied_fp32")
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_text(
            json.dumps(json.loads((folder / name).read_text()) | {"eos_token_id": [700]})
        )
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"qwen3_tied_fp32/config\.json.*eos_token_id 700"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "stored, loaded", [("bfloat16", "bfloat16"), ("float32", "float32"), ("float16", "float32")]
)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 10_000])
def test_a_config_without_dtype_leaves_it_to_the_weights(golden, tmp_path, stored, loaded, max_shard_bytes):
    model, _ = load_pretrained(golden / "llama_biases_yarn_fp32")
    save_pretrained(model, None, tmp_path / "m", dtype=stored, max_shard_bytes=max_shard_bytes)
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    del config["dtype"]
    path.write_text(json.dumps(config | {"torch_dtype": None}))
    again, _ = load_pretrained(tmp_path / "m")
    assert (again.dtype, again.config.dtype) == (jnp.dtype(loaded), stored)
    save_pretrained(again, None, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == loaded
    assert {str(t.dtype) for t in tensors(tmp_path / "out").values()} == {loaded}
    assert load_pretrained(tmp_path / "m", dtype="float32")[0].dtype == jnp.float32
    path.write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))  # what is said goes first
    assert load_pretrained(tmp_path / "m")[0].dtype == jnp.bfloat16


def test_trained_random_model_round_trips(tmp_path):
    config = ModelConfig("llama", 12, 8, 16, 2, 2, 1, 6, qkv_bias=True, output_bias=True, mlp_bias=True)
    model = Decoder(config, rngs=nnx.Rngs(3))
    save_pretrained(model, None, tmp_path / "m")
    again, _ = load_pretrained(tmp_path / "m")
    ids = np.arange(12, dtype=np.int32)[None]
    np.testing.assert_array_equal(again(ids), model(ids))


def test_saving_replaces_a_checkpoint_whole_and_nothing_else(golden, tmp_path):
    model, _ = load_pretrained(golden / "llama_biases_yarn_fp32")
    out = tmp_path / "m"
    save_pretrained(model, None, out, max_shard_bytes=10_000)
    save_pretrained(model, None, out)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert os.listdir(tmp_path) == ["m"]  # no temporary folder stays
    assert (out.stat().st_mode & 0o777) == ((tmp_path / "m" / "config.json").stat().st_mode & 0o777) | 0o111
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no checkpoint folder"):
        save_pretrained(model, None, tmp_path / "papers")
    assert (tmp_path / "papers" / "thesis.tex").exists()


def test_saving_through_a_link_and_into_the_working_folder(golden, tmp_path, monkeypatch):
    model, _ = load_pretrained(golden / "llama_biases_yarn_fp32")
    (tmp_path / "large_disk" / "m").mkdir(parents=True)
    (tmp_path / "m").symlink_to(tmp_path / "large_disk" / "m")
    for _ in range(2):
        save_pretrained(model, None, tmp_path / "m")
    assert (tmp_path / "m").is_symlink()
    assert (tmp_path / "large_disk" / "m" / "model.safetensors").is_file()
    monkeypatch.chdir(tmp_path / "large_disk" / "m")
    save_pretrained(model, None, ".")
    assert same_bits(tensors(tmp_path / "m"), tensors(golden / "llama_biases_yarn_fp32"))
    assert os.listdir(tmp_path / "large_disk") == ["m"]


def test_a_failed_save_leaves_the_old_checkpoint(golden, tmp_path):
    model, _ = load_pretrained(golden / "llama_biases_yarn_fp32")
    save_pretrained(model, None, tmp_path / "m")
    before = tensors(tmp_path / "m")
    with pytest.raises(TypeError):
        save_pretrained(model, None, tmp_path / "m", caspo={"bad": object()})
    assert same_bits(before, tensors(tmp_path / "m"))
    assert os.listdir(tmp_path) == ["m"]


def test_an_interrupt_between_the_old_checkpoint_and_the_new_loses_neither(golden, tmp_path, monkeypatch):
    model, _ = load_pretrained(golden / "llama_biases_yarn_fp32")
    save_pretrained(model, None, tmp_path / "m")
    before, rename = tensors(tmp_path / "m"), os.rename

    def interrupted(old, new):
        monkeypatch.undo()
        rename(old, new)
        raise KeyboardInterrupt

    monkeypatch.setattr("os.rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(model, None, tmp_path / "m")
    assert same_bits(before, tensors(tmp_path / "m"))
    assert os.listdir(tmp_path) == ["m"]


def test_sharded_over_a_mesh_is_the_same_model(golden):
    from caspo_jax.sharding import make_mesh

    mesh = make_mesh("fsdp:-1")
    folder = golden / "qwen3_tied_fp32"
    split, whole = load_pretrained(folder, mesh=mesh)[0], load_pretrained(folder)[0]
    assert split.embed[...].sharding.mesh.axis_names == ("fsdp",)
    for a, b in zip(nnx.to_flat_state(nnx.state(split)), nnx.to_flat_state(nnx.state(whole)), strict=True):
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1][...], b[1][...])


@pytest.mark.slow
def test_an_exported_policy_loads_in_transformers_with_the_same_logits(checkpoint, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_pretrained(checkpoint, dtype="float32")
    graphdef, params = nnx.split(model)
    changed = nnx.merge(graphdef, jax.tree.map(lambda p: p * 1.01, params))  # a policy that was trained
    save_pretrained(changed, tokenizer, tmp_path / "policy")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 40))
    with torch.no_grad():
        want = other(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(changed(jnp.asarray(ids)), want, atol=1e-4)
