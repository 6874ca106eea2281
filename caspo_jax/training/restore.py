"""The policy of a training run's newest, or best, checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caspo_jax.distributed import from_writer
from caspo_jax.errors import UserError
from caspo_jax.store import hash_path
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.digests import base_digest
from caspo_jax.training.run_folder import read_description
from caspo_jax.training.train_step import parameters_alone, trainable_model, trained_model


def restore_trained(model: Any, folder: str | Path, checkpoint: str = "last") -> tuple[Any, int]:
    """The trained model (its adapters unmerged, if the run trained adapters) and the number of updates behind it.

    Args:
      model: the policy that the run started from; it gives shapes and dtype.
      folder: the run's folder.
      checkpoint: `last` (the newest that is whole), `best` (by the run's `best_metric`), or an update's number.

    Raises:
      UserError: the folder holds no run, one that started from another policy, no checkpoint yet, or not the wanted
        one; or that one is damaged; or a newer version described the run.
    """
    from caspo_jax.training.checkpoints import Checkpoints

    folder = Path(folder)
    description = read_description(description_of(folder))
    if description["base"] != base_digest(model):
        raise UserError(
            f"{folder}: the run started from another policy than the one given: give the one that it trained"
        )
    try:
        config = TrainConfig.from_json(description["config"])
    except UserError as error:
        raise UserError(f"{folder / 'run.json'}: {error}") from error
    model = trainable_model(model, config)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        like = parameters_alone(model, config)
        found = checkpoints.restore(like, _wanted(checkpoints, folder, checkpoint), partial=True)
    finally:
        checkpoints.close()
    if found is None:
        raise UserError(_no_checkpoint(folder))
    return trained_model(model, found[0]), int(found[0].step)


def resolve_checkpoint(folder: str | Path, checkpoint: str) -> tuple[int, str]:
    """The update that `last` or `best` means for now, and a hash of its checkpoint. Raises as `restore_trained` does."""
    from caspo_jax.training.checkpoints import CHECKSUMS, Checkpoints

    folder = description_of(folder).parent
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        update = _wanted(checkpoints, folder, checkpoint)
        update = checkpoints.newest_whole() if update is None else update
    finally:
        checkpoints.close()
    if update is None:
        raise UserError(_no_checkpoint(folder))
    checksums = checkpoints.folder / str(update) / CHECKSUMS
    return update, from_writer("state", lambda: hash_path(checksums)[:16])


def _no_checkpoint(folder: Path) -> str:
    return f"{folder}: the run has no whole checkpoint yet; train on"


def _wanted(checkpoints: Any, folder: Path, name: str) -> int | None:
    """The update meant by `last` (None), `best` or a number."""
    if name == "last":
        return None
    if name == "best":
        best = checkpoints.best()
        if best is None:
            raise UserError(
                f"{folder}: no checkpoint has a value; train with best_metric, or take the last one"
            )
        return best
    if not name.isdecimal():
        raise UserError(f"checkpoint={name!r}: give last, best or the number of an update")
    return int(name)


def description_of(folder: str | Path) -> Path:
    """The file that describes a run. Raises UserError if the folder holds no run with a checkpoint."""
    folder = Path(folder)
    if not (folder / "run.json").is_file() or not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder}: no training run with a checkpoint in it; train first")
    return folder / "run.json"
