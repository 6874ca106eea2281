"""The far end of a benchmark: a process that stays alive, answers JSON lines, and knows its own memory.

Imports nothing but the standard library, so that a peer's interpreter can run it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer each line of stdin with a line on stdout, until stdin ends; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")
        replies.flush()


def peak_bytes() -> int:
    """Most memory this process has held (resident set), in bytes; since `reset_peak`, where Linux allows that."""
    with open("/proc/self/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmHWM"].split()[0]) * 1024


def resident_bytes() -> int:
    """Memory that this process holds now, in bytes."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reclaim() -> None:
    """Touch and free as much memory as this process has held beyond what it holds now.

    A virtual machine gives the pages that a process leaves back to its host within seconds, and then each costs a trip
    there: .4 s for a run of .3 s that had waited for the other side. A process that works without such pauses does not pay.
    """
    len(b"x" * max(0, peak_bytes() - resident_bytes()))


def reset_peak() -> None:
    """Let `peak_bytes` start anew."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")


def versions(*packages: str) -> dict[str, str]:
    """Their versions, for the record."""
    return {name: importlib.metadata.version(name) for name in packages}
