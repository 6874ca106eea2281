"""The policy of a training run's newest checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.train_step import make_train_step, trainable_model, trained_model


def restore_trained(model: Any, folder: str | Path) -> tuple[Any, int]:
    """The trained model (its adapters unmerged, if the run trained adapters) and the number of updates behind it.

    Args:
      model: the policy that the run started from; it gives shapes and dtype.
      folder: the run's folder.

    Raises:
      UserError: the folder holds no run, or no checkpoint yet.
    """
    from caspo_jax.training.checkpoints import Checkpoints

    folder = Path(folder)
    description = description_of(folder)
    settings = json.loads(description.read_text(encoding="utf-8"))["config"]
    config = TrainConfig.from_json(settings)
    model = trainable_model(model, config)
    _, state = make_train_step(model, config, 1)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
    try:
        if checkpoints.latest is None:
            raise UserError(f"{folder}: the run has no checkpoint yet; train on")
        state, _ = checkpoints.restore(state)
    finally:
        checkpoints.close()
    return trained_model(model, state), int(state.step)


def description_of(folder: str | Path) -> Path:
    """The file that describes a run. Raises UserError if the folder holds no run with a checkpoint."""
    folder = Path(folder)
    if not (folder / "run.json").is_file() or not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder}: no training run with a checkpoint in it; train first")
    return folder / "run.json"
