"""Checkpoints of a run through orbax: parameters, optimiser, update count and the data iterator's state.

Every checkpoint holds `checksums.json`, the size and SHA-256 of its files. It is written before the folder gets its
name, so a folder without it, or with other bytes in it, is damaged; the newest checkpoint that is whole is the one that counts.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.errors import UserError, first_line
from caspo_jax.store import hash_path, read_json, write_json
from caspo_jax.training.step_state import TrainState

CHECKSUMS = "checksums.json"
# Orbax notes the time of the commit in it after the checksums were taken: it need only be readable.
ORBAX_NOTES = "_CHECKPOINT_METADATA"
_SCHEMA = {"name": "checkpoint", "version": 1}
_TRASH = "removed-"


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint was passed over because its files are not those that were written."""


class Checkpoints:
    """The states of a run that are kept: the last few, and the best one by a value given with it.

    A checkpoint is written in the background (the state is copied off the device first) and appears whole (written
    aside, renamed) or not at all. Several processes write one checkpoint together; they all call every method.
    """

    def __init__(self, folder: Path, keep: int = 1, *, background: bool = True):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.folder = folder.absolute()
        self._keep, self._background = keep, background
        self._writing: tuple[int, float | None, str | None] | None = None
        self._files_written = True
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler("state", "iterator"),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._add_checksums),
        )

    @property
    def steps(self) -> list[int]:
        """Updates that have a checkpoint, damaged or not, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def save(
        self,
        state: TrainState,
        iterator_state: dict[str, Any],
        value: float | None = None,
        of: str | None = None,
    ) -> None:
        """Write the state after its last update, with what the iterator hands out next.

        Args:
          state: of the update just done.
          iterator_state: plain JSON.
          value: how good this state is; the checkpoint with the highest one is never removed.
          of: what the value is: those of other kinds are not compared with it.
        """
        self.wait()
        if self._background and jax.default_backend() == "cpu":
            # There the write would read the very buffers that the next update is given.
            state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)
        args, step = self._ocp.args, int(state.step)
        self._writing, self._files_written = (step, value, of), False
        self._checkpointer.save(
            self.folder / str(step),
            args=args.Composite(
                state=args.StandardSave(_named_leaves(state)), iterator=args.JsonSave(iterator_state)
            ),
            force=True,  # over a damaged one of the same update
        )
        if not self._background:
            self.wait()

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is still being written in the background. Raises what went wrong with it."""
        self._checkpointer.check_for_errors()
        return not self._files_written

    def wait(self) -> None:
        """Block until the checkpoint under way is on disk, then remove those that are no longer kept."""
        self._checkpointer.wait_until_finished()
        if self._writing is not None:
            (step, *_), self._writing = self._writing, None
            if jax.process_index() == 0:
                self._remove_old(step)

    def restore(
        self, like: TrainState, step: int | None = None, *, partial: bool = False
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest whole state (or that of a given update), placed as `like` is, and the iterator's state.

        Args:
          like: arrays, or their shapes, dtypes and shardings. Arrays are given up where there is a checkpoint: two states
            may not fit into memory.
          step: which update's; default the newest whole one's.
          partial: what `like` lacks is not read.

        Returns:
          None if there is no whole checkpoint. Warns (`DamagedCheckpointWarning`) of each that is passed over.

        Raises:
          UserError: the checkpoint is of another model, or the given one is damaged or not there.
        """
        step = self.newest_whole() if step is None else self._checked(step)
        if step is None:
            return None
        args = self._ocp.args
        target = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in _named_leaves(like).items()
        }
        for leaf in jax.tree.leaves(like):
            if isinstance(leaf, jax.Array):
                leaf.delete()
        state = args.StandardRestore(target)
        if partial:
            places = self._ocp.checkpoint_utils.construct_restore_args(target)
            state = args.PyTreeRestore(target, places, partial_restore=True)
        try:
            restored = self._checkpointer.restore(
                self.folder / str(step), args=args.Composite(state=state, iterator=args.JsonRestore())
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(
                f"{self.folder}/{step}: cannot resume from this checkpoint ({first_line(error)}): "
                "use the settings and model that wrote it, or another folder"
            ) from error
        leaves = [restored["state"][name] for name in _named_leaves(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), restored["iterator"]

    def best(self) -> int | None:
        """The update whose checkpoint has the highest value (ties: the later one), None where none has one.

        Values of another kind than the newest's, from before the run was told to look at another metric, do not count.
        """
        return self._best(self.steps)

    def _best(self, steps: Sequence[int]) -> int | None:
        notes = {step: _read(self.folder / str(step) / CHECKSUMS) for step in steps}
        known = [(n["value"], step, n.get("of")) for step, n in notes.items() if n.get("value") is not None]
        if not known:
            return None
        newest = known[-1][2]
        return max((value, step) for value, step, of in known if of == newest)[1]

    def close(self) -> None:
        """Finish what is being written and release orbax's resources."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def newest_whole(self) -> int | None:
        """The newest whole checkpoint, the same in every process; warns of each that is passed over."""
        found = -1
        if jax.process_index() == 0:
            for step in reversed(self.steps):
                damage = damage_of(self.folder / str(step))
                if damage is None:
                    found = step
                    break
                warnings.warn(
                    f"{self.folder}/{step}: {damage}; going on from the checkpoint before it",
                    DamagedCheckpointWarning,
                    stacklevel=2,
                )
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        return None if found < 0 else found

    def _checked(self, step: int) -> int:
        path = self.folder / str(step)
        damage = damage_of(path) if path.is_dir() else "no such checkpoint"
        if damage is not None:
            there = ", ".join(map(str, self.steps)) or "none"
            raise UserError(f"{path}: {damage} (checkpoints there: {there})")
        return step

    def _add_checksums(self) -> None:
        """Orbax calls it when all files are written, before the folder gets its name."""
        assert self._writing is not None
        step, value, of = self._writing
        (folder,) = self.folder.glob(f"{step}{self._ocp.utils.TMP_DIR_SUFFIX}*")
        files = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_path(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ORBAX_NOTES
        }
        notes = {"schema": _SCHEMA, "step": step, "value": value, "of": of, "files": files}
        write_json(folder / CHECKSUMS, notes)
        self._files_written = True

    def _remove_old(self, newest: int) -> None:
        steps = self.steps
        # Later ones were damaged, or the run would have gone on from there: they are not among those that are kept.
        counted = [step for step in steps if step <= newest]
        kept = {*counted[-self._keep :], self._best(counted)}
        for step in steps:
            if step not in kept:
                # Renamed first: a removal cut short must not leave what looks like a damaged checkpoint.
                trash = (self.folder / str(step)).rename(self.folder / f"{_TRASH}{step}")
                shutil.rmtree(trash)

    def clean(self) -> None:
        """Remove what a kill left: half-written checkpoints, and removals cut short. For the run alone, not for readers."""
        if self.folder.is_dir() and jax.process_index() == 0:
            suffix = self._ocp.utils.TMP_DIR_SUFFIX
            for path in self.folder.iterdir():
                if suffix in path.name or path.name.startswith(_TRASH):
                    shutil.rmtree(path)


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, None if they are those that were written."""
    files = _read(checkpoint / CHECKSUMS).get("files")
    for name, readable in ((CHECKSUMS, files), (ORBAX_NOTES, _read(checkpoint / ORBAX_NOTES))):
        if not readable:
            return f"damaged checkpoint: no readable {name}"
    assert files is not None
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"damaged checkpoint: {name} is missing"
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"damaged checkpoint: {name} has {size} bytes, {expected['bytes']} were written"
        if hash_path(path) != expected["sha256"]:
            return f"damaged checkpoint: {name} has other contents than were written"
    return None


def _read(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty if it cannot be read."""
    try:
        return read_json(path)
    except UserError:
        return {}


def _named_leaves(state: TrainState) -> dict[str, jax.Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
