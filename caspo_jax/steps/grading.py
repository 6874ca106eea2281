"""math-verify in a process of its own, so that a time limit holds in every thread and in C code.

math-verify's own limit is an alarm signal: it works in the main thread only, and cannot interrupt one long
integer operation. The helper process is started at first use, kept, and replaced when it overruns.
"""

from __future__ import annotations

import atexit
import json
import logging
import select
import subprocess
import sys
import threading
from pathlib import Path

from caspo_jax.errors import UserError

_WORKER = Path(__file__).with_name("grading_worker.py")
_START_SECONDS = 120.0  # the first answer waits for sympy to be imported
MOST_CHARACTERS = 2000
_log = logging.getLogger(__name__)


class Grader:
    """Compares answers with math-verify; safe to share between threads."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self.timeouts = 0  # comparisons that met the limit, each counted as different
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[tuple[str, str], bool] = {}

    def equivalent(self, gold: str, answer: str) -> bool:
        """math-verify's `verify(gold, answer)`; False beyond the time limit or 2,000 characters."""
        if max(len(gold), len(answer)) > MOST_CHARACTERS:
            return False
        with self._lock:
            if (gold, answer) not in self._known:
                self._known[gold, answer] = self._ask(gold, answer)
            return self._known[gold, answer]

    def close(self) -> None:
        """Ends the helper process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _ask(self, gold: str, answer: str) -> bool:
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(
                json.dumps({"gold": gold, "answer": answer, "seconds": self.seconds}).encode() + b"\n"
            )
            process.stdin.flush()
            line = self._read(process, 2 * self.seconds + 1)  # it limits parsing and comparing itself
        except BrokenPipeError:
            line = b""  # it died, of memory say
        reply = json.loads(line) if line else {"timeout": True}
        if reply.get("timeout"):
            self.timeouts += 1
            _log.warning("math-verify gave up on %r against %r: counted as different", answer[:80], gold[:80])
            if not line:
                self.close()
            return False
        return reply["equal"]

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        ready = self._read(process, _START_SECONDS)
        self._process = process
        if not ready or "error" in json.loads(ready):
            self.close()
            reason = json.loads(ready)["error"] if ready else "it did not start"
            raise UserError(f"math-verify cannot be used ({reason}): pip install 'math-verify[antlr4-13-2]'")
        return process

    @staticmethod
    def _read(process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """One line, or nothing if it does not come in time; a reply is one write of less than a pipe's page."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return process.stdout.readline() if ready else b""


_shared = Grader()
atexit.register(_shared.close)


def math_equivalent(gold: str, answer: str) -> bool:
    """Whether math-verify holds two mathematical answers for equal; the order matters."""
    return _shared.equivalent(gold, answer)
