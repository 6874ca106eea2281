"""The training loop: pairs in, policy out; killed at any moment, it goes on from its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from caspo_jax.errors import UserError
from caspo_jax.preferences.packing import Row
from caspo_jax.sharding import batch_ways, mesh_of
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.data import RowStore
from caspo_jax.training.metrics_log import MetricsLog
from caspo_jax.training.monitor import DisplacementMonitor
from caspo_jax.training.plan import Micro, Plan, make_plan
from caspo_jax.training.run_folder import claim_folder, load_reference, save_reference
from caspo_jax.training.step_logprobs import batch_reference
from caspo_jax.training.train_step import StepOutput, StepReport, make_train_step, trained_model
from caspo_jax.types import Pair, PairBatch, StepRows, TreeBatch

Callback = Callable[[Mapping[str, Any]], None]
_NAMED_PAIRS = 16  # pair ids in an error message


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """What a run did."""

    steps: int  # updates
    pairs: int
    verified: int
    tokens: int  # tokens read by all updates
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
      reference: the frozen reference; default the policy at the start.
      out_dir: folder for checkpoints, `metrics.jsonl` and TensorBoard events; None keeps nothing.
      mesh: devices to split batches over; default the model's own.
      callback: called with each update's metrics and `steps`, the updates in all, one update late.
      progress: show a progress bar on stderr.

    Returns:
      The trained model (a new one, in the model's dtype) and the summary.

    Raises:
      UserError: nothing to train on; a loss or gradient that is not finite (names the batch's pairs); `out_dir`
        holds a run with other settings, data or model.
    """
    started = time.perf_counter()
    store = RowStore.build(data, verified)
    mesh = mesh or mesh_of(model)
    plan = make_plan(store, config, batch_ways(mesh))
    folder = None if out_dir is None else Path(out_dir)
    if folder is not None:
        claim_folder(folder, config, store.fingerprint(), model)
    if config.loss.contrastive:
        _fill_references(store, plan, config, reference or model, folder)

    step_fn, state = make_train_step(model, config, plan.steps, mesh)
    iterator, resumed = plan.iterator(), 0
    with contextlib.ExitStack() as resources:
        checkpoints, log = None, None
        if folder is not None:
            from caspo_jax.training.checkpoints import Checkpoints

            checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
            resources.callback(checkpoints.close)
            if checkpoints.latest is not None:
                state, iterator_state = checkpoints.restore(state)
                iterator.set_state(iterator_state)
                resumed = int(state.step)
            log = MetricsLog(folder, resume_after=resumed, tensorboard=config.tensorboard)
            resources.callback(log.close)
        reporter = _Reporter(plan, config, log, callback, _progress_bar(progress, plan.steps, resumed))
        resources.callback(reporter.bar.close)

        for number in range(resumed + 1, plan.steps + 1):
            micros = plan.micro(*next(iterator))
            state, output = step_fn(state, [micro.batch for micro in micros], number - 1)
            reporter.report_last()
            reporter.pending = (number, output, micros)
            due = config.save_every is not None and number % config.save_every == 0
            if checkpoints is not None and (due or number == plan.steps):
                # A checkpoint is only written of updates whose loss is known to be finite.
                reporter.report_last()
                checkpoints.save(state, iterator.get_state())
        reporter.report_last()
        summary = TrainSummary(
            steps=plan.steps,
            pairs=len(store.chosen),
            verified=len(store.verified),
            tokens=int(sum(record["tokens"] for record in reporter.history)),
            seconds=time.perf_counter() - started,
            resumed_from=resumed,
            displaced_at=reporter.monitor.warned_at,
            history=tuple(reporter.history),
        )
    return trained_model(model, state), summary


class _Reporter:
    """Reports an update after the next one is on its way, so that the device never waits for the host."""

    def __init__(
        self, plan: Plan, config: TrainConfig, log: MetricsLog | None, callback: Callback | None, bar: Any
    ):
        self.pending: tuple[int, StepOutput, list[Micro]] | None = None
        self.monitor = DisplacementMonitor(config.displacement_margin, config.displacement_window)
        self.history: list[dict[str, Any]] = [] if log is None else log.history
        self.bar = bar
        self._plan, self._config, self._log, self._callback = plan, config, log, callback
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
        if not all(math.isfinite(report.metrics[name]) for name in ("loss", "grad_norm")):
            raise UserError(_not_finite(number, report, micros, self._plan.store))
        record: dict[str, Any] = {
            "step": number,
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

    def _watch(self, record: Mapping[str, Any], quiet: bool = False) -> None:
        displacement = record.get("displacement")
        if displacement is None:
            return
        if quiet:  # a warning given before the restart is not given again
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.monitor.update(record["step"], displacement)
        else:
            self.monitor.update(record["step"], displacement)


def _fill_references(
    store: RowStore, plan: Plan, config: TrainConfig, reference: Any, folder: Path | None
) -> None:
    """Reference log-probs of every pair: those given, those of an earlier start, or computed now."""
    if folder is not None:
        load_reference(folder, store)
    bad: list[int] = []
    computed = False
    for micro in plan.reference_micros():
        computed = True
        pairs, known = micro.pairs, micro.pairs >= 0
        chosen, rejected = batch_reference(reference, micro.batch, chunk=config.head_chunk)
        chosen, rejected = (x[: len(pairs)][known] for x in (chosen, rejected))
        store.reference_chosen[pairs[known]] = chosen
        store.reference_rejected[pairs[known]] = rejected
        bad += pairs[known][~(np.isfinite(chosen) & np.isfinite(rejected))].tolist()
    if bad:
        raise UserError(
            f"the reference's log-probs are not finite for pairs {_names(store, np.unique(bad))}: "
            "check the reference's weights and these pairs' token ids"
        )
    if folder is not None and computed:
        save_reference(folder, store)


def _not_finite(number: int, report: StepReport, micros: Sequence[Micro], store: RowStore) -> str:
    guilty = [m.pairs[~ok[: len(m.pairs)]] for m, ok in zip(micros, report.pair_finite)]
    steps = [m.verified[~ok[: len(m.verified)]] for m, ok in zip(micros, report.verified_finite) if len(ok)]
    pairs, verified = np.concatenate(guilty), np.concatenate([*steps, np.zeros(0, int)])
    blamed = "rows whose loss is not finite"
    if not len(pairs) and not len(verified):
        pairs, blamed = np.concatenate([m.pairs for m in micros]), "the batch"
    names = _names(store, pairs)
    if len(verified):
        names += f"; verified steps {', '.join(map(str, verified[:_NAMED_PAIRS]))}"
    return (
        f"update {number}: loss {report.metrics['loss']}, gradient norm {report.metrics['grad_norm']}; "
        f"{blamed}: {names}. Lower the learning rate, or look at these pairs"
    )


def _names(store: RowStore, pairs: np.ndarray) -> str:
    names = ", ".join(store.pair_ids[i] for i in pairs[:_NAMED_PAIRS])
    more = len(pairs) - _NAMED_PAIRS
    return f"{names} and {more} more" if more > 0 else names


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
