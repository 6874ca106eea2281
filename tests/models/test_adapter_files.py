"""Adapters in PEFT's files: in, out, and what is refused by name."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from caspo_jax.errors import UserError
from caspo_jax.models import LoraConfig, add_lora, load_adapter, load_pretrained, save_adapter
from tests.models.test_lora import NAME, SHAPES, hand_made, write_adapter


@pytest.fixture(scope="module")
def model(golden):
    return load_pretrained(golden / NAME)[0]


@pytest.mark.parametrize("targets", [("self_attn.q_proj", "self_attn.v_proj"), tuple(SHAPES)])
def test_peft_files_round_trip(model, tmp_path, targets):
    tensors = hand_made(targets, seed=3)
    first = write_adapter(tmp_path / "in", tensors, use_rslora=True, lora_dropout=0.1, inference_mode=True)
    loaded = load_adapter(model, first)
    assert loaded.lora == LoraConfig(4, 6.0, tuple(t.split(".")[1] for t in targets), rslora=True)
    save_adapter(loaded, tmp_path / "out", base="some/base")
    save_adapter(loaded, tmp_path / "out", base="some/base")  # its own kind may be replaced
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 6, True)
    assert config["target_modules"] == list(loaded.lora.targets)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}
    (tmp_path / "link").symlink_to(tmp_path / "out")
    save_adapter(loaded, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (
        json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    )


def test_a_regular_expression_and_initial_values_that_leave_the_base_alone(model, tmp_path):
    settings = {"target_modules": r".*\.(q|v)_proj", "init_lora_weights": "eva", "eva_config": {"rho": 1.0}}
    folder = write_adapter(tmp_path / "in", hand_made(("self_attn.q_proj", "self_attn.v_proj")), **settings)
    assert load_adapter(model, folder).lora.targets == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"a_setting_of_tomorrow": 3}, "a_setting_of_tomorrow"),
        ({"r": "four"}, "four"),
        ({"r": 8}, "shape"),
    ],
)
def test_settings_that_are_not_computed_are_refused_by_name(model, tmp_path, settings, word):
    folder = write_adapter(tmp_path / "adapter", hand_made(("self_attn.q_proj",)), **settings)
    with pytest.raises(UserError, match=word):
        load_adapter(model, folder)


@pytest.mark.parametrize(
    "settings",
    [{"r": 0}, {"r": True}, {"r": None}, {"lora_alpha": True}, {"lora_alpha": -3}, {"use_rslora": "yes"}],
)
def test_numbers_of_no_adapter_are_refused_in_the_files_name(model, tmp_path, settings):
    write_adapter(tmp_path, hand_made(("self_attn.q_proj",)), **settings)
    with pytest.raises(UserError) as error:
        load_adapter(model, tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'adapter_config.json'}: ")


def test_adapters_are_no_model(model, tmp_path):
    save_adapter(add_lora(model, LoraConfig(2), jax.random.key(0)), tmp_path)
    with pytest.raises(UserError, match="holds LoRA adapters and no model"):
        load_pretrained(tmp_path)


def test_adapters_beside_a_configuration_are_no_model(copy_of):
    """As trainers leave them: the base's config.json and the tokenizer lie there, and arguments in a pickle."""
    folder = copy_of(NAME)
    write_adapter(folder / "adapter", hand_made())
    for file in (folder / "adapter").iterdir():
        file.rename(folder / file.name)
    (folder / "training_args.bin").touch()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds LoRA adapters and no model"):
        load_pretrained(folder)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"pytorch_model\.bin: pickle"):
        load_pretrained(folder)


def test_adapters_beside_a_model_are_no_obstacle(model, copy_of):
    folder = copy_of(NAME)
    write_adapter(folder / "adapter", hand_made())
    for file in (folder / "adapter").iterdir():
        file.rename(folder / file.name)
    np.testing.assert_array_equal(load_pretrained(folder)[0].embed[...], model.embed[...])


def test_damaged_adapters_are_refused_by_name(model, tmp_path):
    whole = hand_made(("self_attn.q_proj",))
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    cases = {
        "missing": {k: v for k, v in whole.items() if k != name},
        r"layers\.0\.self_attn\.q_proj\.lora_B\.weight' is missing": {
            k: v for k, v in whole.items() if "_A" in k
        },
        "not part": whole | {"base_model.model.lm_head.weight": np.zeros((4, 4), np.float32)},
        "shape": whole | {name: np.zeros((4, 4), np.float32)},
        "stored as": whole | {name: np.zeros((128, 4), np.int32)},
        "no adapter": {"other": np.zeros(3, np.float32)},
    }
    for word, tensors in cases.items():
        with pytest.raises(UserError, match=word):
            load_adapter(model, write_adapter(tmp_path / "adapter", tensors))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_model.bin").touch()
    with pytest.raises(UserError, match="pickle"):
        load_adapter(model, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        load_adapter(model, tmp_path)
    with pytest.raises(UserError, match="no adapters"):
        save_adapter(model, tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    with pytest.raises(UserError, match="exists"):
        save_adapter(add_lora(model, LoraConfig(), jax.random.key(0)), tmp_path / "taken")
