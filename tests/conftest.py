"""How tests compile: once for all tests, workers and processes, and, in the default tier, without optimising.

Both are said in the environment before jax is there, so that the processes that tests start do the same.
"""

import gc
import itertools
import os
import signal
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def pytest_configure(config):
    """The default tier spends most of its time in the compiler: it takes a third of that, and slower programs.

    The slow tier, and what CI runs besides, compile as users do; so does `XLA_FLAGS= pytest`.
    """
    # Tests send Ctrl-C, which what a shell starts in the background ignores.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.markexpr == "not slow and not ci" and "XLA_FLAGS" not in os.environ:
        flags = ["--xla_backend_optimization_level=0"]
        if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones do not know it, and end
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ["XLA_FLAGS"] = " ".join(flags)


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
