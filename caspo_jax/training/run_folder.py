"""What makes a run's folder this run's: settings, data and model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.distributed import writer_first
from caspo_jax.errors import UserError
from caspo_jax.store import write_json
from caspo_jax.training.config import TrainConfig


def claim_folder(folder: Path, config: TrainConfig, data: str, model: Any) -> None:
    """Note in `run.json` what this folder's run trains on, or check it against what is there.

    Raises:
      UserError: the folder holds a run with other settings, data or model; names what differs.
    """
    path = folder / "run.json"
    wanted: dict[str, Any] = {
        "config": json.loads(json.dumps(config.shaping())),
        "data": data,
        "model": _model_moments(model),
    }
    with writer_first("run folder"):
        if not path.exists():
            write_json(path, wanted)
    found = json.loads(path.read_text(encoding="utf-8"))
    differing = [
        name
        for name in sorted(wanted["config"].keys() | found["config"].keys())
        if wanted["config"].get(name) != found["config"].get(name)
    ]
    if found["data"] != data:
        differing.append("data")
    if not np.allclose(found["model"], wanted["model"], rtol=1e-4):
        differing.append("model")
    if differing:
        raise UserError(
            f"{folder} holds a run that differs in {', '.join(differing)}: use another folder or remove it"
        )


def _model_moments(model: Any) -> list[float]:
    """Sums of |p| and p^2 over all parameters: enough to tell one policy from another on any mesh."""
    return [float(x) for x in _moments(nnx.split(model)[1])]


@jax.jit
def _moments(params: Any) -> jax.Array:
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(params)]
    return jnp.stack([sum(jnp.sum(jnp.abs(x)) for x in leaves), sum(jnp.sum(x * x) for x in leaves)])
