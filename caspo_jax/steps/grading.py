"""math-verify in a process of its own, so that a time limit holds in every thread and in C code.

math-verify's own limit is an alarm signal: it works in the main thread only, and cannot interrupt one long
integer operation. The helper process is started at first use, kept, and replaced when it overruns.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError

_WORKER = Path(__file__).with_name("grading_worker.py")
_START_SECONDS = 120.0  # the first answer waits for sympy to be imported
MOST_CHARACTERS = 2000
_PATIENCE = 3  # answers without fault against which another may meet the limit
_log = logging.getLogger(__name__)


class Grader:
    """Compares answers with math-verify; safe to share between threads."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds  # to read one answer, and to compare two
        self.timeouts = 0  # comparisons that met the limit, each counted as different
        self._known: dict[tuple[str, str], bool] = {}
        self._unreadable: set[str] = set()  # answers that take too long to read
        self._in_time: set[str] = set()  # answers that some comparison was done with in time
        self._late: dict[str, set[str]] = {}  # answer -> what it met the limit against
        self._own()

    def equivalent(self, gold: str, answer: str) -> bool:
        """math-verify's `verify(gold, answer)`; False beyond the time limit or 2,000 characters."""
        if max(len(gold), len(answer)) > MOST_CHARACTERS:
            return False
        with self._lock:
            if (gold, answer) not in self._known:
                self._known[gold, answer] = self._ask(gold, answer)
            return self._known[gold, answer]

    def _own(self) -> None:
        """Without a helper yet: also in a forked process, where its parent's would be asked by two at once."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

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
        if self._hopeless(gold) or self._hopeless(answer):
            self.timeouts += 1
            return False
        if self._process is not None and self._process.poll() is not None:
            self.close()  # killed while it waited, which says nothing about these two
        process = self._process or self._start()
        assert process.stdin is not None
        reading = None
        reply: dict[str, Any] = {}
        try:
            process.stdin.write(
                json.dumps({"gold": gold, "answer": answer, "seconds": self.seconds}).encode() + b"\n"
            )
            process.stdin.flush()
            # It limits itself, but no alarm interrupts one long integer operation.
            while line := self._read(process, 2 * self.seconds + 1):
                reply = json.loads(line)
                if "reading" not in reply:
                    break
                reading = reply["reading"]
        except BrokenPipeError:
            pass  # it died, of memory say
        except BaseException:
            self.close()  # after Ctrl-C in a notebook its reply would be taken for that to the next question
            raise
        if "equal" in reply:
            self._in_time |= {gold, answer}
            return reply["equal"]
        self.timeouts += 1
        if reading is not None:
            self._unreadable.add({"gold": gold, "answer": answer}[reading])
        self._late.setdefault(gold, set()).add(answer)
        self._late.setdefault(answer, set()).add(gold)
        _log.warning("math-verify gave up on %r against %r: counted as different", answer[:80], gold[:80])
        if "timeout" not in reply:
            self.close()
        return False

    def _hopeless(self, text: str) -> bool:
        """Whether an answer is not worth another wait: one vote compares it with every other."""
        blameless = self._late.get(text, set()) & self._in_time
        return text in self._unreadable or (text not in self._in_time and len(blameless) >= _PATIENCE)

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
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared._own)


def math_equivalent(gold: str, answer: str) -> bool:
    """Whether math-verify holds two mathematical answers for equal; the order matters."""
    return _shared.equivalent(gold, answer)
