"""Compiling less: compiled programs kept on disk, and options that compile faster."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache.compilation_cache import reset_cache

LEAST_SECONDS = 0.2  # of compilation; what takes less is not kept
KEPT_DAYS = 60  # since a program was last read

# For programs that are compiled for many shapes and made of many small kernels. Such kernels run as fast either way (no
# difference beyond the noise for a decode step of 8 rows, nor for tiny policies of hundreds); training's do not.
_QUICK_ON_CPU = {"xla_cpu_use_fusion_emitters": False, "xla_llvm_disable_expensive_passes": True}


def keep_programs(folder: Path | None = None) -> Path | None:
    """Lets JAX keep what it compiles in a folder, so that the next run, or the next program, need not compile it again.

    A program is found again if it is the same in all that matters: its text, the versions, the device, the options.
    Where JAX was given a folder before (JAX_COMPILATION_CACHE_DIR) or told to keep nothing
    (JAX_ENABLE_COMPILATION_CACHE=false), that stands.

    Args:
      folder: default: `~/.cache/caspo_jax/programs` (or below XDG_CACHE_HOME), a folder in it for each kind of processor.

    Returns:
      The folder in use; None if nothing is kept, as where it cannot be written.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "caspo_jax" / "programs"
    folder = folder / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _drop_old(folder)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
    """Within it nothing is taken from the folder or put there.

    For programs that are read and not run: those for devices that are not here cannot be loaded, and a program that was
    kept may bear the names of older source.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # JAX looks at the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def _processor() -> str:
    """A short hash of the kind of processor: JAX's own key leaves it out, and code for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    abilities = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return hashlib.blake2b(f"{platform.machine()} {abilities}".encode(), digest_size=6).hexdigest()


def _drop_old(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86400
    for path in folder.iterdir():
        times = path.stat()
        if max(times.st_atime, times.st_mtime) < oldest:
            path.unlink(missing_ok=True)


@functools.cache
def quick_compile_options() -> dict[str, bool]:
    """`compiler_options` for `jax.jit` with which a CPU compiles about a third faster; none for other backends.

    Options come and go with versions of XLA: those that it does not know are left out.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _QUICK_ON_CPU.items() if _known(name, value)}


def _known(name: str, value: bool) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(jnp.zeros(())).compile()
    except Exception:  # the type of XLA's error for it has changed before
        return False
    return True
