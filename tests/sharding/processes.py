"""Python in processes of its own, on virtual CPU devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def start(*arguments, devices: int, **options) -> subprocess.Popen:
    """`python ARGUMENTS` from the root of the repository, which it imports from."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, cwd=ROOT, **options)


def run(*arguments, devices: int) -> str:
    """What it printed; it must end well."""
    process = start(*arguments, devices=devices)
    out, err = process.communicate()
    assert process.returncode == 0, err[-4000:]
    return out
