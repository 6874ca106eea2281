"""Programs compiled once for all tests, workers and processes, and kept for the next run.

The folder is named in the environment before jax is there, so that the processes that tests start use it too.
"""

import os
from pathlib import Path

os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
