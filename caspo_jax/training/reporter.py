"""What a run tells of its updates: metrics to the log and the bar, warnings, and errors where a loss is not finite."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.training.base_plan import Micro, Plan
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.metrics_log import MetricsLog
from caspo_jax.training.monitor import DisplacementMonitor
from caspo_jax.training.nonfinite import MOST_IN_A_ROW, describe, write_batch
from caspo_jax.training.step_state import StepOutput, StepReport
from caspo_jax.types import PairBatch, TreeBatch

Callback = Callable[[Mapping[str, Any]], None]
OnReference = Callable[[int, int, int], None]  # (pairs done, pairs in all, updates in all)


# Numbers of a record that say nothing about the policy: no checkpoint is the best by them.
_NO_METRICS = ("step", "skipped", "epoch", "tokens", "tokens_per_second", "seconds", "fill")


class Reporter:
    """Reports an update after the next one is on its way, so that the device never waits for the host.

    Args:
      plan: of the run.
      config: its settings.
      folder: where batches that gave no finite loss are written; None keeps nothing.
      log: where metrics are kept, those before a restart included; None keeps them in memory alone.
      callback: called with each update's metrics and `steps`, the updates in all.
      bar: a progress bar (`progress_bar`).
    """

    def __init__(
        self,
        plan: Plan,
        config: TrainConfig,
        folder: Path | None,
        log: MetricsLog | None,
        callback: Callback | None,
        bar: Any,
    ):
        self.monitor = DisplacementMonitor(config.displacement_margin, config.displacement_window)
        self.history: list[dict[str, Any]] = [] if log is None else log.history
        self._pending: tuple[int, StepOutput, list[Micro]] | None = None
        self._plan, self._config, self._folder = plan, config, folder
        self._log, self._callback, self._bar = log, callback, bar
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was said before the restart is not said again
            for record in self.history:
                self._watch(record)
        self._clock = time.perf_counter()

    def add(self, number: int, output: StepOutput, micros: list[Micro]) -> None:
        """Take update `number` (1, 2, ...), and report the one before it. Raises as `flush` does."""
        self.flush()
        self._pending = (number, output, micros)

    def flush(self) -> None:
        """Report the newest update, if it is not reported yet; blocks until the device has done it.

        Raises:
          UserError: its loss or gradient is not finite, and it was not skipped, or too many before it were.
        """
        if self._pending is None:
            return
        (number, output, micros), self._pending = self._pending, None
        report = output.fetch(self._config.loss)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        finite = all(math.isfinite(report.metrics[name]) for name in ("loss", "grad_norm"))
        if report.skipped or not finite:
            self._not_finite(number, report, micros)
        record: dict[str, Any] = {
            "step": number,
            **({"skipped": True} if report.skipped else {}),
            "epoch": round(min(number / self._plan.epoch_steps, self._config.epochs), 4),
            **report.metrics,
            "tokens_per_second": report.metrics["tokens"] / max(seconds, 1e-9),
            "seconds": seconds,
            "fill": report.metrics["tokens"] / sum(_positions(micro.batch) for micro in micros),
        }
        if self._log is not None:
            self._log.write(record)
        else:
            self.history.append(record)
        self._watch(record)
        self._bar.update(1)
        shown = [name for name in ("loss", "rewards/accuracy", "displacement") if name in record]
        self._bar.set_postfix({name.split("/")[-1]: f"{record[name]:.3g}" for name in shown})
        if self._callback is not None:
            self._callback({**record, "steps": self._plan.steps})

    def value(self) -> float | None:
        """How good the newest update's state is: `best_metric`, mean over the updates that a checkpoint stands for.

        Raises:
          UserError: the run has no such metric.
        """
        name, config = self._config.best_metric, self._config
        if name is None:
            return None
        last = self.history[-1]
        # None stands for a number that was not finite.
        metrics = [k for k, v in last.items() if isinstance(v, float | None) and k not in _NO_METRICS]
        if name not in metrics:
            known = ", ".join(metrics)
            raise UserError(f"best_metric={name!r} is no metric of this run: choose one of {known}")
        recent = [r for r in self.history[-(config.save_every or 1) :] if not r.get("skipped")]
        values = [record[name] for record in recent if record[name] is not None]
        if not values:
            return None
        return float(np.mean(values)) * (1 if config.best_mode == "max" else -1)

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()

    def _not_finite(self, number: int, report: StepReport, micros: Sequence[Micro]) -> None:
        """Write the batch out, and stop unless the update was skipped (and not too many before it)."""
        store = self._plan.store
        message = describe(number, report, micros, store)
        if self._folder is not None and jax.process_index() == 0:
            path = write_batch(self._folder, number, report, micros, store)
            message += f" (all ids in {path})"
        if not report.skipped:
            raise UserError(
                f"{message}. Lower the learning rate, look at these pairs, or leave such updates out with skip_nonfinite"
            )
        row = 0
        while row < len(self.history) and self.history[-1 - row].get("skipped"):
            row += 1
        if row + 1 >= MOST_IN_A_ROW:
            raise UserError(f"{message}. {row + 1} updates in a row were skipped: lower the learning rate")

    def _watch(self, record: Mapping[str, Any]) -> None:
        displacement = record.get("displacement")
        if displacement is not None and not record.get("skipped"):
            self.monitor.update(record["step"], displacement)


def progress_bar(show: bool, total: int, done: int, what: str = "train", unit: str = "update") -> Any:
    """A bar on stderr, in the first process; elsewhere, or if it is not to be shown, something that looks like one."""
    if not show or jax.process_index() != 0:
        return _NoBar()
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=what, unit=unit, file=sys.stderr)


class ReferenceBar:
    """Shows how far the reference pass is: a bar, and the caller's callback."""

    def __init__(self, show: bool, plan: Plan, callback: OnReference | None):
        left = plan.unknown_references()
        self._bar = progress_bar(show and left > 0, left, 0, "reference", "pair")
        self._updates, self._callback, self._done = plan.steps, callback, 0

    def __call__(self, done: int, total: int) -> None:
        """So many of the pairs have their log-probs."""
        self._bar.update(done - self._done)
        self._done = done
        if self._callback is not None:
            self._callback(done, total, self._updates)

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()


class _NoBar:
    def update(self, _: int) -> None: ...
    def set_postfix(self, _: Mapping[str, str]) -> None: ...
    def close(self) -> None: ...


def _positions(batch: PairBatch | TreeBatch) -> int:
    """Token positions that a forward pass computes, padding included."""
    if isinstance(batch, TreeBatch):
        return batch.token_ids.size
    groups = (batch.chosen, batch.rejected, batch.verified)
    return sum(rows.token_ids.size for rows in groups if rows is not None)
