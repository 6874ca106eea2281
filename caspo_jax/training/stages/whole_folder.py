"""Folders of weights that appear whole: whose folder an output is, is known before the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.distributed import barrier, from_writer, is_writer
from caspo_jax.errors import UserError
from caspo_jax.folders import clear_leftovers, is_free, replace_folder
from caspo_jax.locks import held
from caspo_jax.outputs import Manifest, manifest_path


def write_once(
    program: str,
    sources: Sequence[str | Path],
    output: str | Path,
    settings: Mapping[str, Any],
    write: Callable[[Path], dict[str, Any]],
    overwrite: bool,
) -> Path:
    """Write a folder and its manifest, unless the manifest says that it is there.

    The folder gets its name once it is complete, so that one without a manifest is somebody's own.

    Args:
      program: the program's name, for the manifest.
      sources: what is read.
      output: the folder.
      settings: all that shapes its contents, as plain JSON values.
      write: writes a folder, and returns what the manifest is to count.
      overwrite: replace a folder of weights that has other settings, or that no program wrote.

    Returns:
      The folder.

    Raises:
      UserError: the folder is, or holds, one of the `sources`; it is no folder of weights; it was written with other
        settings, or by no program, and `overwrite` is off; another process is writing it.
    """
    output = Path(output)
    place = output.resolve()  # what a link or a dot stands for can be renamed
    with held(place):
        # Said by one process: it may be done before another looks.
        found = from_writer("folder", lambda: _state_of(sources, place))
        if found == "own":
            raise UserError(f"{output} is, or holds, what is read: use another output")
        if found == "other":
            raise UserError(f"{output}: exists and is no checkpoint folder: use another output or remove it")
        if found == "unknown" and not overwrite:
            raise UserError(
                f"{output} is there, and no manifest in it says that this program wrote it: "
                "use another output or --overwrite"
            )
        new = place.with_name(f".{place.name}.export")
        if is_writer():
            clear_leftovers(new, place)
        if found == "manifest":
            path = manifest_path(place, folder=True)
            manifest = Manifest.open(path, program=program, config=settings, overwrite=overwrite)
            if manifest.complete:
                return output
        if is_writer():  # where no folder can be made is found out now, not after the work
            new.mkdir(parents=True)
            new.rmdir()
        counts = write(new)
        manifest = Manifest.open(manifest_path(new, folder=True), program=program, config=settings)
        manifest.finish(**counts)
        if is_writer():
            replace_folder(new, place)
        barrier(f"{place.name} in place")
    return output


def _state_of(sources: Sequence[str | Path], place: Path) -> str:
    """What stands where an export is to go: nothing, an export, a checkpoint of somebody's, a source, something else."""
    if is_free(place):
        return "nothing"
    if any(Path(source).exists() and Path(source).resolve().is_relative_to(place) for source in sources):
        return "own"
    if not any((place / name).is_file() for name in ("config.json", "adapter_config.json")):
        return "other"
    return "manifest" if manifest_path(place, folder=True).exists() else "unknown"
