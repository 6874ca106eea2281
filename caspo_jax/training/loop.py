"""The training loop: pairs in, policy out; killed at any moment, it goes on from its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from caspo_jax.errors import Interrupted, UserError
from caspo_jax.models.lora import base_model
from caspo_jax.preferences.packing import Row
from caspo_jax.sharding import batch_ways, mesh_of
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.data import RowStore
from caspo_jax.training.metrics_log import MetricsLog
from caspo_jax.training.monitor import DisplacementMonitor
from caspo_jax.training.nonfinite import MOST_IN_A_ROW, describe, write_batch
from caspo_jax.training.plan import Micro, Plan
from caspo_jax.training.plans import make_plan
from caspo_jax.training.preemption import StopNotice
from caspo_jax.training.reference_cache import fill_references
from caspo_jax.training.run_folder import claim_folder
from caspo_jax.training.step_state import StepOutput, StepReport
from caspo_jax.training.train_step import make_train_step, trainable_model, trained_model
from caspo_jax.types import Pair, PairBatch, StepRows, TreeBatch

Callback = Callable[[Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """What a run did."""

    steps: int  # updates
    pairs: int
    verified: int
    tokens: int  # tokens read by all updates
    skipped: int  # updates left out because their loss or gradient was not finite
    seconds: float  # this process's, reference pass included
    resumed_from: int  # the update that this process started after, 0 for a fresh run
    displaced_at: int | None  # the update that gave the likelihood displacement warning
    history: tuple[Mapping[str, Any], ...]  # the metrics of every update, those before a restart included

    @property
    def last(self) -> Mapping[str, Any]:
        """The last update's metrics."""
        return self.history[-1] if self.history else {}


def train(
    model: Any,
    data: Sequence[Pair | PairBatch],
    config: TrainConfig,
    *,
    verified: Sequence[Row | StepRows] = (),
    reference: Any = None,
    reference_cache: str | Path | None = None,
    out_dir: str | Path | None = None,
    mesh: Mesh | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> tuple[Any, TrainSummary]:
    """Train a policy on step preferences for one round.

    The rows of `data` are reshuffled every epoch and packed into batches of `config.batch_size`, whatever batches
    they came in. Reference log-probs that are not there yet are computed once, before the first update. Nothing but
    the data order is random, and that is a function of `config.seed`: a run that was killed and started
    again with the same arguments ends with the parameters of an uninterrupted one, bit for bit.

    Args:
      model: the policy at the round's start, also after an interruption; it is left as it is.
      data: pairs, or packed batches (padding rows are dropped; reference log-probs of NaN are computed).
      config: see `TrainConfig`.
      verified: verified-correct steps for the NLL term or `rft` (`preferences.verified_rows`, or `StepRows`).
      reference: the frozen reference; default the policy at the start, of a model with adapters the model without them.
      reference_cache: folder of reference log-probs that runs share (`reference_cache.ReferenceCache`); default
        `out_dir`'s own.
      out_dir: folder for checkpoints, `metrics.jsonl` and TensorBoard events; None keeps nothing.
      mesh: devices to split batches over; default the model's own.
      callback: called with each update's metrics and `steps`, the updates in all, one update late.
      progress: show a progress bar on stderr.

    Returns:
      The trained model (a new one, in the model's dtype; with `config.lora` its adapters are not merged) and the summary.

    Raises:
      UserError: nothing to train on; a loss or gradient that is not finite (names the batch's pairs, which
        `out_dir/not_finite/` lists; with `config.skip_nonfinite` only after several in a row); `out_dir` holds a
        run with other settings, data or model.
      Interrupted: SIGTERM or a preemption notice came (looked for only with `out_dir`); a checkpoint is written.
    """
    started = time.perf_counter()
    start, model = model, trainable_model(model, config)
    store = RowStore.build(data, verified)
    mesh = mesh or mesh_of(model)
    plan = make_plan(store, config, batch_ways(mesh))
    folder = None if out_dir is None else Path(out_dir)
    if folder is not None:
        claim_folder(folder, config, store.fingerprint(), model, start)
    if config.loss.contrastive:
        if reference is None:
            reference = base_model(model) if getattr(model, "lora", None) is not None else model
        if reference_cache is None and folder is not None:
            reference_cache = folder / "reference"
        cache = None if reference_cache is None else Path(reference_cache)
        fill_references(store, plan, reference, cache, config.head_chunk)

    step_fn, state = make_train_step(model, config, plan.steps, mesh, accumulate=plan.accumulates)
    iterator, resumed = plan.iterator(), 0
    with contextlib.ExitStack() as resources:
        checkpoints, log, notice = None, None, None
        if folder is not None:
            from caspo_jax.training.checkpoints import Checkpoints

            checkpoints = Checkpoints(
                folder / "checkpoints", config.keep_checkpoints, background=config.async_checkpoints
            )
            resources.callback(checkpoints.close)
            checkpoints.clean()
            found = checkpoints.restore(state)
            if found is not None:
                state, iterator_state = found
                iterator.set_state(iterator_state)
                resumed = int(state.step)
            log = MetricsLog(folder, resume_after=resumed, tensorboard=config.tensorboard)
            resources.callback(log.close)
            notice = resources.enter_context(StopNotice())
        reporter = _Reporter(
            plan, config, folder, log, callback, _progress_bar(progress, plan.steps, resumed)
        )
        resources.callback(reporter.bar.close)

        for number in range(resumed + 1, plan.steps + 1):
            micros = plan.micro(*next(iterator))
            state, output = step_fn(state, [micro.batch for micro in micros], number - 1)
            reporter.report_last()
            reporter.pending = (number, output, micros)
            if number == resumed + 1 and config.best_metric is not None:
                # Not left to the first checkpoint: a whole run may lie before it.
                reporter.report_last()
                reporter.value()
            due = config.save_every is not None and number % config.save_every == 0
            stop = notice is not None and notice.reached(number)
            if checkpoints is not None and (due or stop or number == plan.steps):
                # A checkpoint is only written of updates whose loss is known to be finite.
                reporter.report_last()
                of = None if config.best_metric is None else f"{config.best_mode} {config.best_metric}"
                checkpoints.save(state, iterator.get_state(), reporter.value(), of)
            if stop and checkpoints is not None and number < plan.steps:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped after update {number} of {plan.steps}, which is kept in {folder}: "
                    "run the same command again to go on",
                    signal.SIGTERM,
                )
        reporter.report_last()
        summary = TrainSummary(
            steps=plan.steps,
            pairs=len(store.chosen),
            verified=len(store.verified),
            tokens=int(sum(record["tokens"] for record in reporter.history)),
            skipped=sum(bool(record.get("skipped")) for record in reporter.history),
            seconds=time.perf_counter() - started,
            resumed_from=resumed,
            displaced_at=reporter.monitor.warned_at,
            history=tuple(reporter.history),
        )
    return trained_model(model, state), summary


class _Reporter:
    """Reports an update after the next one is on its way, so that the device never waits for the host."""

    def __init__(
        self,
        plan: Plan,
        config: TrainConfig,
        folder: Path | None,
        log: MetricsLog | None,
        callback: Callback | None,
        bar: Any,
    ):
        self.pending: tuple[int, StepOutput, list[Micro]] | None = None
        self.monitor = DisplacementMonitor(config.displacement_margin, config.displacement_window)
        self.history: list[dict[str, Any]] = [] if log is None else log.history
        self.bar = bar
        self._plan, self._config, self._folder = plan, config, folder
        self._log, self._callback = log, callback
        for record in self.history:
            self._watch(record, quiet=True)
        self._clock = time.perf_counter()

    def report_last(self) -> None:
        if self.pending is None:
            return
        (number, output, micros), self.pending = self.pending, None
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
        self.bar.update(1)
        self.bar.set_postfix(
            {
                name.split("/")[-1]: f"{record[name]:.3g}"
                for name in ("loss", "rewards/accuracy", "displacement")
                if name in record
            }
        )
        if self._callback is not None:
            self._callback({**record, "steps": self._plan.steps})

    def value(self) -> float | None:
        """How good the newest update's state is: `best_metric`, mean over the updates that a checkpoint stands for."""
        name, config = self._config.best_metric, self._config
        if name is None:
            return None
        if name not in self.history[-1]:
            known = ", ".join(k for k, v in self.history[-1].items() if isinstance(v, float))
            raise UserError(f"best_metric={name!r} is no metric of this run: choose one of {known}")
        recent = [r for r in self.history[-(config.save_every or 1) :] if not r.get("skipped")]
        values = [record[name] for record in recent if record[name] is not None]
        if not values:
            return None
        return float(np.mean(values)) * (1 if config.best_mode == "max" else -1)

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

    def _watch(self, record: Mapping[str, Any], quiet: bool = False) -> None:
        displacement = record.get("displacement")
        if displacement is None or record.get("skipped"):
            return
        if quiet:  # a warning given before the restart is not given again
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.monitor.update(record["step"], displacement)
        else:
            self.monitor.update(record["step"], displacement)


def _positions(batch: PairBatch | TreeBatch) -> int:
    """Token positions that a forward pass computes, padding included."""
    if isinstance(batch, TreeBatch):
        return batch.token_ids.size
    groups = (batch.chosen, batch.rejected, batch.verified)
    return sum(rows.token_ids.size for rows in groups if rows is not None)


class _NoBar:
    def update(self, _: int) -> None: ...
    def set_postfix(self, _: Mapping[str, str]) -> None: ...
    def close(self) -> None: ...


def _progress_bar(show: bool, total: int, done: int) -> Any:
    if not show or jax.process_index() != 0:
        return _NoBar()
    import sys

    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc="train", unit="update", file=sys.stderr)
