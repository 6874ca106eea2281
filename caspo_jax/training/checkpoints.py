"""Checkpoints of a run through orbax: parameters, optimiser, update count and the data iterator's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from caspo_jax.errors import UserError
from caspo_jax.training.train_step import TrainState


class Checkpoints:
    """The last few states of a run; a checkpoint appears whole (written aside, renamed) or not at all."""

    def __init__(self, folder: Path, keep: int):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        # Synchronous: the next update donates these very buffers, and on CPU a background copy may alias them.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The last update that has a checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator_state: dict[str, Any]) -> None:
        """Write the state after its last update, with what the iterator hands out next."""
        args = self._ocp.args
        self._manager.save(
            int(state.step),
            args=args.Composite(
                state=args.StandardSave(_named_leaves(state)), iterator=args.JsonSave(iterator_state)
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The last state, placed as `like` is, and the iterator's state.

        Raises:
          UserError: the checkpoint is of another model or cannot be read.
        """
        args, step = self._ocp.args, self._manager.latest_step()
        target = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in _named_leaves(like).items()
        }
        try:
            restored = self._manager.restore(
                step,
                args=args.Composite(state=args.StandardRestore(target), iterator=args.JsonRestore()),
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"{self._manager.directory}/{step}: cannot resume from this checkpoint ({reason}): "
                "use the settings and model that wrote it, or another folder"
            ) from error
        leaves = [restored["state"][name] for name in _named_leaves(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), restored["iterator"]

    def close(self) -> None:
        """Release orbax's resources."""
        self._manager.close()


def _named_leaves(state: TrainState) -> dict[str, jax.Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
