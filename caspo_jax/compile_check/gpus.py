"""GPUs that are not there: what XLA's compiler must know of a device to compile for it."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What differs between the GPUs that can be named.

    Source: NVIDIA's data sheets, and "Compute Capabilities" in the CUDA C++ Programming Guide (read November 2026).
    """

    name: str  # as the driver says it
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    fpus: int  # float32 units of each
    shared: int  # bytes of shared memory a multiprocessor
    cache: int  # bytes of the last level
    clock: float  # GHz
    memory: int  # bytes
    bandwidth: float  # bytes a second

    @property
    def target_config(self) -> str:
        """XLA's GpuTargetConfigProto as text."""
        major, minor = self.capability
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              threads_per_core_limit: 2048
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              shared_memory_per_block: 49152
              shared_memory_per_block_optin: {self.shared - 1024}
              shared_memory_per_core: {self.shared}
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              core_count: {self.cores}
              fpus_per_core: {self.fpus}
              clock_rate_ghz: {self.clock}
              l2_cache_size: {self.cache}
              memory_bandwidth: {int(self.bandwidth)}
              device_memory_size: {self.memory}
              cuda_compute_capability {{ major: {major} minor: {minor} }}
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 8 }}
            runtime_version {{ major: 12 minor: 8 }}
            device_description_str: "{self.name}"
        """


_MIB = 2**20
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 164 * 1024, 40 * _MIB, 1.41, 81_000 * _MIB, 2039e9),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 228 * 1024, 50 * _MIB, 1.98, 81_000 * _MIB, 3350e9
    ),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 128, 228 * 1024, 50 * _MIB, 1.98, 143_000 * _MIB, 4800e9),
}


def gpu_devices(name: str, count: int) -> list[Any]:
    """`count` absent GPUs of one host.

    Raises:
      NotImplementedError: the CUDA plugin of JAX is not installed.
    """
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="cuda", topology=f"1x1x{count}", target_config=GPUS[name].target_config
    )
    return list(described.devices)
