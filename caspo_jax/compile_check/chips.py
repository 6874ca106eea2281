"""The published figures of TPU and GPU chips, and the (absent) devices of a topology of them."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any, Literal

from caspo_jax.compile_check.gpus import GPUS, gpu_devices
from caspo_jax.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one chip.

    Source: the "System architecture" pages of the Cloud TPU documentation, one a generation (read November 2026). HBM is
    given there in GB; what the compiler may use is a little less than that many GiB. Of GPUs: NVIDIA's data sheets,
    dense products; of their memory JAX takes three quarters unless it is told otherwise.
    """

    name: str
    flops: float  # bf16, a second
    hbm_bytes: float
    hbm_bandwidth: float  # bytes a second
    # Bytes a second into the chip over all its links: half of the published bidirectional figure.
    ici_bandwidth: float
    platform: Literal["tpu", "gpu"] = "tpu"
    flat: bool = False  # its slices are planes of at most 16x16; the compiler aborts on others


_CORES_TOGETHER = {"v4": "megacore"}  # one device a chip, as JAX has it on the machine; else libtpu says two


CHIPS = {
    "v4": Chip("v4", 275e12, 32 * 2**30, 1200e9, 300e9),
    "v5e": Chip("v5e", 197e12, 16 * 2**30, 819e9, 200e9, flat=True),
    "v5p": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip("v6e", 918e12, 32 * 2**30, 1638e9, 400e9, flat=True),
    "a100": Chip("a100", 312e12, 0.75 * GPUS["a100"].memory, GPUS["a100"].bandwidth, 300e9, "gpu"),
    "h100": Chip("h100", 989e12, 0.75 * GPUS["h100"].memory, GPUS["h100"].bandwidth, 450e9, "gpu"),
    "h200": Chip("h200", 989e12, 0.75 * GPUS["h200"].memory, GPUS["h200"].bandwidth, 450e9, "gpu"),
}
MOST_CHIPS = 256
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock is on chips that a process would use, and this one uses none
}


def topology_devices(topology: str) -> tuple[Chip, list[Any]]:
    """The chip and the (absent) devices of a topology such as `v5e:4x4`, `v5p:2x2x2`, `v6e:16x16` or `h100:8`.

    Raises:
      UserError: an unknown chip or shape, too many chips, or their compiler is not installed.
    """
    name, _, shape = topology.partition(":")
    sizes = shape.split("x")
    if name not in CHIPS or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UserError(
            f"--topology={topology}: give CHIP:SHAPE with a chip of {', '.join(CHIPS)}, e.g. v5e:4x4, v5p:4x4x4 or h100:8"
        )
    count = math.prod(map(int, sizes))
    if count > MOST_CHIPS:
        raise UserError(f"--topology={topology}: {count} chips; at most {MOST_CHIPS}")
    if CHIPS[name].flat and (max(map(int, sizes)) > 16 or count != math.prod(map(int, sizes[:2]))):
        raise UserError(
            f"--topology={topology}: {name} chips lie in a plane of 16x16 at most, e.g. {name}:4x4"
        )
    if CHIPS[name].platform == "gpu":
        return CHIPS[name], _gpus(name, count, topology)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(
            'the TPU compiler is not installed: pip install ".[tpu]" in the clone of caspo_jax'
        ) from None
    # There is no metadata server to ask what this machine is; without an answer the compiler prints pages of warnings.
    for variable, value in _NO_MACHINE.items():
        os.environ.setdefault(variable, value)
    import jax
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, chip_config_name=_CORES_TOGETHER.get(name, "default")
        )
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise _unknown(topology, "TPU", error) from error
    return CHIPS[name], list(described.devices)


def _gpus(name: str, count: int, topology: str) -> list[Any]:
    import jax

    try:
        return gpu_devices(name, count)
    except NotImplementedError as error:
        raise UserError(
            'the GPU compiler is not installed: pip install ".[gpu]" in the clone of caspo_jax'
        ) from error
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise _unknown(topology, "GPU", error) from error


def _unknown(topology: str, platform: str, error: Exception) -> UserError:
    return UserError(f"--topology={topology}: the {platform} compiler does not know it ({first_line(error)})")
