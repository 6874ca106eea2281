"""Compiling less: compiled programs kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

LEAST_SECONDS = 0.2  # of compilation; what takes less is not kept
KEPT_DAYS = 60  # since a program was last read


def keep_programs() -> Path | None:
    """Lets JAX keep what it compiles, below XDG_CACHE_HOME or `~/.cache`, so that a later run need not compile it again.

    A program is found again if it is the same in all that matters: its text, the versions, the device, the options.
    Each kind of processor has a folder of its own.
    Where JAX was given a folder before (JAX_COMPILATION_CACHE_DIR) or told to keep nothing
    (JAX_ENABLE_COMPILATION_CACHE=false), that stands.

    Returns:
      The folder in use; None if nothing is kept, as where it cannot be written.
    """
    if not _setting("jax_enable_compilation_cache"):
        return None
    given = _setting("jax_compilation_cache_dir")
    if given:
        return Path(given)
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "caspo_jax" / "programs" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
        _drop_old(folder)
    except (OSError, RuntimeError):  # the latter: nobody's home
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
    """Within it nothing is taken from the folder or put there.

    For programs that are read and not run: those for devices that are not here cannot be loaded, and a program that was
    kept may bear the names of older source.
    """
    before = _setting("jax_enable_compilation_cache")
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # JAX looks at the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def _setting(name: str) -> Any:
    return getattr(jax.config, name)  # its settings are known at run time alone


def _processor() -> str:
    """A short hash of the kind of processor: JAX's own key leaves it out, and code for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    abilities = next((line for line in lines if line.startswith(("flags", "Features"))), "".join(lines[:1]))
    return hashlib.blake2b(f"{platform.machine()} {abilities}".encode(), digest_size=6).hexdigest()


def _drop_old(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86400
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process drops it too, or it is nothing of JAX's
            times = path.stat()
            if max(times.st_atime, times.st_mtime) < oldest:
                path.unlink()
