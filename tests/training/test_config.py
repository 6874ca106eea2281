"""Settings of training: what cannot work is refused by name."""

import dataclasses
import json

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.models import LoraConfig
from caspo_jax.training import PRESETS, TrainConfig


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
    ]:
        with pytest.raises(UserError, match=field):
            TrainConfig(**{field: value})


def test_presets_have_names_and_take_changes():
    assert TrainConfig.preset("paper", epochs=3) == dataclasses.replace(PRESETS["paper"], epochs=3)
    with pytest.raises(UserError, match="preset='papre' is unknown: choose one of paper, caspo"):
        TrainConfig.preset("papre")


def test_a_config_comes_back_from_json():
    config = TrainConfig.preset("caspo", lora=LoraConfig(2, targets=("q_proj",)), clip_norm=None)
    assert TrainConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config
