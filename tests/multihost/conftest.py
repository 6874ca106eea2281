"""Makes the helpers of tests/sharding, and those beside the tests, importable under pytest's importlib mode."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sharding")]
