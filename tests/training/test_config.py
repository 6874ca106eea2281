"""Settings of training: what cannot work is refused by name."""

import dataclasses
import json

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.models import LoraConfig
from caspo_jax.training import PRESETS, LossConfig, TrainConfig


def test_bad_settings_are_named():
    for field, value in [
        ("batch_size", 0),
        ("learning_rate", -1.0),
        ("seed", -1),
        ("seed", 2**63),
        ("eps", 0.0),
        ("warmup_fraction", 2.0),
        ("clip_norm", 0.0),
        ("clip_norm", np.inf),  # JSON, and so the run's description, has no word for it
        ("weight_decay", np.inf),
        ("micro_batch_size", 0),
        ("micro_batch_size", 8),  # trees are cut by other settings
        ("batch_size", 2.5),
        ("batch_size", True),
        ("batch_size", "8"),
        ("learning_rate", "1e-3"),
        ("seed", 1.5),
        ("pack", ["trees"]),
        ("displacement_margin", None),
        ("loss", "dpo"),
        ("lora", 16),
    ]:
        with pytest.raises(UserError, match=field):
            TrainConfig(**{field: value})


def test_numpy_numbers_become_json_numbers():
    config = TrainConfig(
        loss=LossConfig(beta=np.float32(0.5), length_normalised=np.bool_(True)),
        batch_size=np.int64(8),
        lora=LoraConfig(rank=np.int64(4)),
    )
    assert TrainConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    "rank, alpha", [(0, None), (2.5, None), ("4", None), (4, 0.0), (4, np.nan), (4, "8")]
)
def test_bad_adapters_are_refused(rank, alpha):
    with pytest.raises(UserError, match="rank" if alpha is None else "alpha"):
        LoraConfig(rank=rank, alpha=alpha)


@pytest.mark.parametrize(
    "field, value", [("beta", 0.0), ("beta", "0.1"), ("label_smoothing", 0.5), ("nll_alpha", True)]
)
def test_bad_losses_are_refused(field, value):
    with pytest.raises(UserError, match=f"{field}={value!r}"):
        LossConfig(**{field: value})


def test_presets_have_names_and_take_changes():
    assert TrainConfig.preset("paper", epochs=3) == dataclasses.replace(PRESETS["paper"], epochs=3)
    with pytest.raises(UserError, match="preset='papre' is unknown: choose one of paper, caspo"):
        TrainConfig.preset("papre")


def test_a_config_comes_back_from_json():
    config = TrainConfig.preset("caspo", lora=LoraConfig(2, targets=("q_proj",)), clip_norm=None)
    assert TrainConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config
