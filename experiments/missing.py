"""A package that is not installed, told in one line."""

from __future__ import annotations


def missing(error: ModuleNotFoundError) -> str | None:
    """What to install; None if the module is one of this project's, whose absence is a fault.

    Args:
      error: an import that failed. What not every program needs is imported where it is used.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "caspo_jax", "experiments"):
        return None
    return f"the package {package} is not installed: pip install -e . in the clone of caspo_jax installs all that programs need"
