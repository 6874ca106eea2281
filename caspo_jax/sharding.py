"""Meshes and the rule table from logical axes to mesh axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from caspo_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes it is split over, in order; an axis that the mesh lacks is left out.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "layers": (),
    "rank": (),
    "head_dim": (),
    "length": (),
}


def make_mesh(spec: str | None, devices: Sequence[Any] | None = None) -> Mesh | None:
    """Builds a mesh from a flag such as `data:2,fsdp:4`; one size may be -1 (the devices left over).

    Args:
      spec: comma-separated `axis:size`, axes among data, fsdp, tensor; None or "" means no mesh.
      devices: of the mesh, default all of this run.

    Raises:
      UserError: an unknown or repeated axis, a bad size, or sizes that do not multiply to the number of devices.
    """
    if not spec:
        return None
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        axis, _, size = part.strip().partition(":")
        if axis not in MESH_AXES or axis in sizes:
            raise UserError(
                f"--mesh={spec}: axis {axis!r} is unknown or repeated (known: {', '.join(MESH_AXES)})"
            )
        if not size.lstrip("-").isdigit() or int(size) < -1 or int(size) == 0:
            raise UserError(
                f"--mesh={spec}: the size of {axis!r} must be a positive integer or -1, not {size!r}"
            )
        sizes[axis] = int(size)
    there = jax.device_count() if devices is None else len(devices)
    free = [axis for axis, size in sizes.items() if size == -1]
    given = int(np.prod([size for size in sizes.values() if size > 0]))
    if len(free) > 1 or (free and there % given):
        raise UserError(f"--mesh={spec}: cannot be completed to {there} devices")
    if free:
        sizes[free[0]] = there // given
    if int(np.prod(list(sizes.values()))) != there:
        raise UserError(
            f"--mesh={spec}: needs {int(np.prod(list(sizes.values())))} devices, there are {there}"
        )
    axis_types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=axis_types, devices=devices)


def named_sharding(
    mesh: Mesh, logical_axes: Sequence[str | None], shape: Sequence[int] | None = None
) -> NamedSharding:
    """The sharding of an array whose dimensions carry these logical axes (None: not split).

    Args:
      mesh: the mesh.
      logical_axes: a name of `RULES`, or None, for each dimension.
      shape: if given, a dimension that its mesh axes do not divide stays whole.

    Raises:
      KeyError: a logical axis that `RULES` lacks.
    """
    parts: list[tuple[str, ...] | None] = []
    for dimension, logical in enumerate(logical_axes):
        axes = tuple(axis for axis in RULES[logical] if axis in mesh.axis_names) if logical else ()
        ways = int(np.prod([mesh.shape[axis] for axis in axes])) if axes else 1
        if shape is not None and shape[dimension] % ways:
            axes = ()
        parts.append(axes or None)
    return NamedSharding(mesh, PartitionSpec(*parts))
