"""Programs compiled once for all tests, workers and processes, and kept for the next run.

The folder is named in the environment before jax is there, so that the processes that tests start use it too.
"""

import gc
import itertools
import os
from pathlib import Path

import pytest

os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


MOST_MAPPINGS = 20_000  # of Linux's 65,530 a process
_tests = itertools.count()


@pytest.fixture(autouse=True)
def room_for_programs(request):
    """Drops a worker's compiled programs from time to time: each is a few mappings of memory.

    A process that has no mapping left dies in the middle of a compilation. Counting takes some 30 ms where they are many.
    """
    yield
    if next(_tests) % 8 and request.node.get_closest_marker("slow") is None:
        return
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()
