"""Folders that appear whole or not at all; what stood there before goes only once the new one is in its place."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from caspo_jax.locks import held


def is_free(path: Path) -> bool:
    """Whether nothing is lost by writing a folder here: there is nothing yet, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A hidden folder to fill, which takes the name `path` when the body ends; on an exception what was there stays.

    Args:
      path: the folder; where it is a link, the folder behind it is replaced, not the link.

    Raises:
      UserError: another process is writing it.
    """
    place = Path(path).resolve()
    new = place.with_name(f".{place.name}.new")
    with held(place):
        clear_leftovers(new, place)
        new.mkdir(parents=True)
        try:
            yield new
            replace_folder(new, place)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def clear_leftovers(new: Path, place: Path) -> None:
    """Removes what a kill left of an earlier `replace_folder(new, place)`, but for an old folder that is all there is."""
    shutil.rmtree(new, ignore_errors=True)
    if place.exists():
        shutil.rmtree(_aside(place), ignore_errors=True)


def replace_folder(new: Path, place: Path) -> None:
    """Gives the folder `new` the name `place` and removes the one that has it; if that fails, the old one is put back.

    Args:
      new: a complete folder beside `place`, whose leftovers are cleared.
      place: no link.
    """
    old = _aside(place)
    try:
        if place.exists():
            # Not removed yet: a removal cut short would look like somebody's own folder.
            os.rename(place, old)
        os.rename(new, place)
    except BaseException:
        if old.exists() and not place.exists():
            os.rename(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _aside(place: Path) -> Path:
    """Where the old folder waits until the new one has its name."""
    return place.with_name(f".{place.name}.replaced")
