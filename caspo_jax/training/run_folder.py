"""What makes a run's folder this run's: settings, data and model."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from caspo_jax.distributed import is_writer, writer_first
from caspo_jax.errors import UserError
from caspo_jax.store import write_json
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.digests import base_digest, weights_digest

_NAMED = {"config", "data", "weights", "base"}  # what every `run.json` has
# What a run writes after `run.json`, but for `reference/`: its entries are never wrong, and other runs may share them.
_WRITTEN = (
    "checkpoints/[0-9]*",
    "checkpoints/removed-*",
    "not_finite/update_*.json",
    "tensorboard/events.*",
    "metrics.jsonl",
)


def claim_folder(
    folder: Path,
    config: TrainConfig,
    data: str,
    start: Any,
    *,
    weights: str | None = None,
    references: str | None = None,
) -> None:
    """Note in `run.json` what this folder's run trains on, or check it against what is there.

    Args:
      folder: of the run.
      config: its settings.
      data: a hash of what it reads.
      start: the policy that training starts from: without the adapters that the run adds.
      weights: the `weights_digest` of `start`, if that is known; default: taken here.
      references: the `references_digest` of a run that has a reference.

    Raises:
      UserError: the folder holds a run with other settings, data, model or reference (names what differs), or files by
        the names of a run's that no run wrote.
    """
    path = folder / "run.json"
    weights = weights or weights_digest(start)
    wanted: dict[str, Any] = {
        "config": json.loads(json.dumps(config.shaping())),
        "data": data,
        "weights": weights,
        "base": base_digest(start, weights),
        **({} if references is None else {"reference": references}),
    }
    with writer_first("run folder"):
        if not path.exists():
            if strange := _written(folder):
                raise UserError(
                    f"{folder} holds {strange[0].relative_to(folder)} but no run.json, so it is of no run: use another folder"
                )
            write_json(path, wanted)
    found = read_description(path)
    differing = [
        name
        for name in sorted(wanted["config"].keys() | found["config"].keys())
        if wanted["config"].get(name) != found["config"].get(name)
    ]
    if found["data"] != data:
        differing.append("data")
    if found["weights"] != weights:
        differing.append("model")
    if found.get("reference") != references:
        differing.append("reference")
    if differing:
        raise UserError(
            f"{folder} holds a run that differs in {', '.join(differing)}: use another folder or remove it"
        )


def read_description(path: Path) -> dict[str, Any]:
    """What a run's `run.json` holds. Raises UserError if it cannot be read, or is of no run."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: unreadable ({error}): use another folder or remove the run") from error
    if not (isinstance(found, dict) and isinstance(found.get("config"), dict) and found.keys() >= _NAMED):
        raise UserError(f"{path}: describes no training run: use another folder or remove it")
    return found


def clear_folder(folder: Path) -> None:
    """Remove the run that a folder holds, if it holds one, and leave every other file where it is."""
    if not is_writer() or not (folder / "run.json").is_file():
        return
    for path in _written(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for pattern in _WRITTEN:
        if (parent := (folder / pattern).parent) != folder:
            with contextlib.suppress(OSError):  # not there, or something else is in it
                parent.rmdir()
    (folder / "run.json").unlink()  # last: a removal cut short is taken up again


def _written(folder: Path) -> list[Path]:
    return sorted(path for pattern in _WRITTEN for path in folder.glob(pattern))
