"""What a program says while it runs and at its end: a bar, plain lines, JSON lines, or nothing."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from caspo_jax.distributed import is_writer

FLAGS = flags.FLAGS
PLAIN_EVERY = 10.0  # seconds between two lines where there is no terminal


def define_terminal_flags() -> None:
    """Flags of every program that takes a while."""
    flags.DEFINE_bool("quiet", False, "no progress; only the closing summary")
    flags.DEFINE_bool(
        "log_json", False, "progress and summary as JSON on stdout, one object a line, instead of text"
    )


def _set(name: str) -> bool:
    return FLAGS.is_parsed() and name in FLAGS and bool(FLAGS[name].value)


def say(text: str) -> None:
    """Text for people: not where stdout carries JSON, and from the first of several processes alone."""
    if not _set("log_json") and is_writer():
        print(text, flush=True)


def emit(event: str, **fields: Any) -> None:
    """One JSON object on stdout; numbers that JSON has no word for become null."""
    if is_writer():
        print(json.dumps({"event": event, **_plain(fields)}, ensure_ascii=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


class Progress:
    """How far a stage is.

    On a terminal a bar on stderr with rate and estimate; elsewhere a plain line every PLAIN_EVERY seconds, so that a log
    file stays readable; with --log_json a record on stdout each time; with --quiet nothing.
    """

    def __init__(self, total: int | None, what: str, unit: str = "question", initial: int = 0):
        self.total, self.what, self.unit, self.done = total, what, unit, initial
        self._initial, self._started = initial, time.monotonic()
        self._spoken = self._started
        # Where rate and estimate count from: the first item done, as its time is mostly compilation, or an earlier run's.
        self._from: tuple[int, float] | None = None
        self._quiet, self._json = _set("quiet") or not is_writer(), _set("log_json")
        self._bar: Any = None
        if not self._quiet and not self._json and sys.stderr.isatty():
            import tqdm

            self._bar = tqdm.tqdm(total=total, desc=what, unit=f" {unit}s", initial=initial)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def reach(self, done: int, total: int | None, **shown: Any) -> None:
        """Advance to `done` of `total` (None: not known yet); `shown` stands behind the bar, and None in it is left out."""
        self.total = total
        step, self.done = done - self.done, done
        if self._from is None and done > self._initial:
            self._from = (done, time.monotonic())
        shown = {name: value for name, value in shown.items() if value is not None}
        if self._bar is not None:
            self._bar.total = total
            if shown:
                self._bar.set_postfix({_words(k): _written(v) for k, v in shown.items()}, refresh=False)
            self._bar.update(step)
            if not step:
                self._bar.refresh()  # what stands behind the bar is new
            if total is not None and done >= total:
                self._bar.close()
        elif self._quiet:
            return
        elif self._json:
            seconds = round(time.monotonic() - self._started, 3)
            emit(
                "progress", stage=self.what, done=done, total=total, unit=self.unit, seconds=seconds, **shown
            )
        elif time.monotonic() - self._spoken >= PLAIN_EVERY:
            self._spoken = time.monotonic()
            print(self._line(shown), file=sys.stderr, flush=True)

    def update(self, count: int = 1, **shown: Any) -> None:
        """Advance by `count`."""
        self.reach(self.done + count, self.total, **shown)

    def _line(self, shown: Mapping[str, Any]) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        parts = [f"{self.what}: {self.done:,}{of} {self.unit}s"]
        first, since = self._from or (self.done, self._started)
        if self.done > first:
            rate = (self.done - first) / max(time.monotonic() - since, 1e-9)
            parts.append(f"{rate:.3g} a second")
            if self.total is not None and self.done < self.total:
                parts.append(f"about {(self.total - self.done) / rate:,.0f} s left")
        parts += [f"{_words(k)} {_written(v)}" for k, v in shown.items()]
        return ", ".join(parts)


def watch(name: str) -> Callable[[str, int], Callable[..., None]]:
    """Progress of the stages of rounds: (stage, round) -> callback."""

    def look(stage: str, k: int) -> Callable[..., None]:
        unit = {"sample": "question", "annotate": "trace", "pairs": "competitor", "train": "update"}[stage]
        return Progress(0, f"{name} round {k} {stage}", unit=unit).reach

    return look


def closing(title: str, rows: dict[str, Any]) -> None:
    """The closing summary of a program."""
    if _set("log_json"):
        emit("summary", title=title, **rows)
        return
    if not is_writer():
        return
    print(title)
    shown = {_words(name): _written(value) for name, value in rows.items()}
    width = max(map(len, shown), default=0)
    for name, text in shown.items():
        first, *others = text.split("\n")
        print(f"  {name:<{width}}  {first}")
        for line in others:
            print(f"  {'':<{width}}  {line}")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _written(value: Any) -> str:
    """A value for people; the entries of a mapping stand below each other."""
    if isinstance(value, Mapping):
        width = max((len(str(k)) for k in value), default=0)
        return "\n".join(f"{k:<{width}}  {_written(v)}" for k, v in value.items())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    )
