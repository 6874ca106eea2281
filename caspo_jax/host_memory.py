"""How much memory the host has left."""

from __future__ import annotations

from pathlib import Path

# Of the container that this process runs in: its limit, or "max", and what is in use; cgroups 2 and 1.
_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_memory(cgroup: str | Path = "/sys/fs/cgroup") -> int:
    """Bytes that this process can still get: the machine's, or as far as its container is allowed to go.

    Args:
      cgroup: where the container's limits stand; files that are missing limit nothing.
    """
    import psutil

    free = psutil.virtual_memory().available
    for names in _LIMITS:
        try:
            limit, used = (int((Path(cgroup) / name).read_text()) for name in names)
        except (OSError, ValueError):
            continue
        free = min(free, max(0, limit - used))
    return free
