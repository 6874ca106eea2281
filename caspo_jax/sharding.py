"""One mesh, one table of rules from logical axes to mesh axes, and the placements that follow from it.

Every function takes the mesh or None; None means one device, and then nothing is done.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from caspo_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes it is split over, in order; an axis that the mesh lacks is left out, and so is one that an
# earlier dimension of the same array took.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # rows: of batches, of the KV cache, of activations
    "rows": ("data", "fsdp", "tensor"),  # of arrays that only row-wise work reads: the logits of a search
    "slots": ("tensor",),  # branches of a question, where its rows are not split over the tensor axis
    "replica": ("data",),  # rows of an array whose other dimensions are split over fsdp
    "embed": ("fsdp",),
    "head_vocab": (
        "tensor",
        "fsdp",
    ),  # of logits under the loss: the head's rows, where no device holds it whole
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "layers": (),
    "rank": (),
    "head_dim": (),
    "length": (),
    "tree": (),  # nodes, slots and history of a search: small, and whole on every device
}

T = TypeVar("T")


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
                f"mesh={spec!r}: axis {axis!r} is unknown or repeated (known: {', '.join(MESH_AXES)})"
            )
        if not re.fullmatch(r"-1|[1-9][0-9]*", size):
            raise UserError(
                f"mesh={spec!r}: the size of {axis!r} must be a positive integer or -1, not {size!r}"
            )
        sizes[axis] = int(size)
    there = jax.device_count() if devices is None else len(devices)
    free = [axis for axis, size in sizes.items() if size == -1]
    given = math.prod(size for size in sizes.values() if size > 0)
    if len(free) > 1 or (free and there % given):
        raise UserError(f"mesh={spec!r}: cannot be completed to {there} devices")
    if free:
        sizes[free[0]] = there // given
    needed = math.prod(sizes.values())
    if needed != there:
        raise UserError(f"mesh={spec!r}: needs {needed} devices, there are {there}")
    axis_types = (AxisType.Auto,) * len(sizes)
    shape, axes = tuple(sizes.values()), tuple(sizes)
    try:
        return jax.make_mesh(shape, axes, axis_types=axis_types, devices=devices)
    except NotImplementedError:
        # The sizes are no products of the chips' own grid (64 x 4 on 16 x 16): an axis of the grid is cut in two.
        from jax.experimental import mesh_utils

        arranged = mesh_utils.create_device_mesh(
            shape, jax.devices() if devices is None else devices, allow_split_physical_axes=True
        )
        return Mesh(arranged, axes, axis_types=axis_types)


def as_mesh(mesh: Mesh | str | None) -> Mesh | None:
    """A mesh whose axes the rules know, from one's own or from what `make_mesh` takes.

    Axes that are Explicit, as `jax.make_mesh` makes them by default, become Auto: the rules say where arrays lie, and the
    compiler the rest.

    Raises:
      UserError: no mesh, or an axis that no rule names: every array would lie whole on every device.
    """
    if isinstance(mesh, str):
        mesh = make_mesh(mesh)
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise UserError(
            f"mesh={mesh!r} is not a mesh: give a jax.sharding.Mesh, or its axes such as 'data:2,fsdp:4'"
        )
    unknown = [axis for axis in mesh.axis_names if axis not in MESH_AXES]
    if unknown:
        raise UserError(
            f"mesh axis {unknown[0]!r} is unknown: name axes data, fsdp or tensor, as in 'data:2,fsdp:4'"
        )
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def named_sharding(
    mesh: Mesh, logical_axes: Sequence[str | None], shape: Sequence[int] | None = None
) -> NamedSharding:
    """The sharding of an array whose dimensions carry these logical axes (None: not split).

    Args:
      mesh: the mesh.
      logical_axes: a name of `RULES`, or None, for each dimension.
      shape: if given, a dimension is split only over the leading ones of its mesh axes that divide it together.

    Raises:
      KeyError: a logical axis that `RULES` lacks.
    """
    parts: list[tuple[str, ...] | None] = []
    taken: set[str] = set()
    for dimension, logical in enumerate(logical_axes):
        axes = tuple(a for a in RULES[logical] if a in mesh.axis_names and a not in taken) if logical else ()
        while shape is not None and shape[dimension] % _ways(mesh, axes):
            axes = axes[:-1]
        taken |= set(axes)
        parts.append(axes or None)
    # As jit names its results: else what an update gives would not look like what it was given.
    while parts and parts[-1] is None:
        parts.pop()
    return NamedSharding(mesh, PartitionSpec(*parts))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh | None) -> int:
    """Into how many parts the mesh splits rows: batches are made of multiples of it."""
    return 1 if mesh is None else _ways(mesh, tuple(a for a in RULES["batch"] if a in mesh.axis_names))


def _ways(mesh: Mesh, axes: Sequence[str]) -> int:
    return int(np.prod([mesh.shape[axis] for axis in axes], dtype=int))


def mesh_of(model: Any) -> Mesh | None:
    """The mesh that a model was loaded on."""
    return getattr(model, "mesh", None)


def platform_of(mesh: Mesh | None) -> str:
    """`cpu`, `gpu` or `tpu`: of the mesh's devices, which may be absent; without a mesh of those that are here."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def bytes_a_device(tree: Any) -> int:
    """Bytes of the parts that one device holds, of arrays or of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def constrain(
    mesh: Mesh | None, array: jax.Array, logical_axes: Sequence[str | None], *, uneven: bool = False
) -> jax.Array:
    """`array`, placed by its logical axes, under jit.

    Args:
      mesh: the mesh, or None.
      array: inside a jitted function.
      logical_axes: as in `named_sharding`.
      uneven: split also what the mesh axes do not divide (the last part is padded).
    """
    if mesh is None:
        return array
    shape = None if uneven else array.shape
    return jax.lax.with_sharding_constraint(array, named_sharding(mesh, logical_axes, shape))


def whole(mesh: Mesh | None, tree: T) -> T:
    """Arrays under jit, whole on every device."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: replicated(mesh), tree))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2, 3))
def gathered(
    mesh: Mesh, array: jax.Array, stored: tuple[str | None, ...], used: tuple[str | None, ...]
) -> jax.Array:
    """A weight that is stored by one placement and used by another: FSDP's gather, whose reverse scatters the gradient.

    The reverse of a plain constraint would hold the gradient in the placement of the use, whole.
    """
    return constrain(mesh, array, used)


def _gathered_forward(mesh: Mesh, array: jax.Array, stored: tuple, used: tuple) -> tuple[jax.Array, None]:
    return constrain(mesh, array, used), None


def _gathered_backward(
    mesh: Mesh, stored: tuple, used: tuple, _: None, cotangent: jax.Array
) -> tuple[jax.Array]:
    return (constrain(mesh, cotangent, stored),)


gathered.defvjp(_gathered_forward, _gathered_backward)


def place(mesh: Mesh | None, tree: T, logical_axes: Sequence[str | None] = ("batch", "length")) -> T:
    """Host arrays as global ones, split by their leading logical axes; without a mesh, left to jit's own transfer.

    Every process passes the same arrays and sends only the parts of its own devices.
    """
    if mesh is None:
        return tree

    def put(array: Any) -> jax.Array:
        array = np.asarray(array)
        axes = (*logical_axes, *(None,) * array.ndim)[: array.ndim]
        sharding = named_sharding(mesh, axes, array.shape)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def to_host(tree: Any) -> Any:
    """The arrays as NumPy; where no process holds all of an array, every process takes part in gathering it."""

    def gathered_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(gathered_leaf, tree))
