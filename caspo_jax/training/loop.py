"""The training loop: pairs in, policy out; killed at any moment, it goes on from its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from caspo_jax.checks import of_kind
from caspo_jax.errors import Interrupted
from caspo_jax.locks import held
from caspo_jax.models.lora import base_model, has_adapters
from caspo_jax.outputs import manifest_path
from caspo_jax.preferences.packing import Row
from caspo_jax.sharding import as_mesh, batch_ways, mesh_of
from caspo_jax.training.base_plan import Plan
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.data import RowStore
from caspo_jax.training.digests import weights_digest
from caspo_jax.training.make_plan import make_plan
from caspo_jax.training.metrics_log import MetricsLog
from caspo_jax.training.preemption import StopNotice
from caspo_jax.training.reference_cache import fill_references
from caspo_jax.training.reference_identity import references_digest
from caspo_jax.training.reporter import Callback, OnReference, ReferenceBar, Reporter, progress_bar
from caspo_jax.training.run_folder import claim_folder
from caspo_jax.training.save_clock import SaveClock
from caspo_jax.training.step_state import TrainState
from caspo_jax.training.train_step import delete_parameters, make_train_step, trainable_model, trained_model
from caspo_jax.types import Pair, PairBatch, StepRows


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
    mesh: Mesh | str | None = None,
    donate: bool = False,
    callback: Callback | None = None,
    on_reference: OnReference | None = None,
    progress: bool = False,
) -> tuple[Any, TrainSummary]:
    """Train a policy on step preferences for one round.

    The rows of `data` are reshuffled every epoch and packed into batches of `config.batch_size`, whatever batches
    they came in. Reference log-probs that are not there yet are computed once, before the first update. Nothing but
    the data order is random, and that is a function of `config.seed`: a run that was killed and started
    again with the same arguments ends with the parameters of an uninterrupted one, bit for bit.

    Args:
      model: the policy at the round's start, also after an interruption; it is left as it is, save with `donate`.
      data: pairs, or packed batches (padding rows are dropped; reference log-probs of NaN are computed).
      config: see `TrainConfig`.
      verified: verified-correct steps for the NLL term or `rft` (`preferences.verified_rows`, or `StepRows`).
      reference: the frozen reference; default the policy at the start, of a model with adapters the model without them.
      reference_cache: folder of reference log-probs that runs share (`reference_cache.ReferenceCache`); default
        `out_dir`'s own.
      out_dir: folder for checkpoints, `metrics.jsonl` and TensorBoard events; None keeps nothing.
      mesh: devices to split batches over, itself or as `make_mesh` takes it; default the model's own.
      donate: give up the parameters of `model` that are trained, once the updates have their own: 2 bytes a parameter less
        in bfloat16. `model` and what shares its arrays (a `reference` too) cannot be used afterwards.
      callback: called with each update's metrics and `steps`, the updates in all, one update late.
      on_reference: called, while reference log-probs are computed, with (pairs done, pairs in all, updates in all).
      progress: show a progress bar on stderr.

    Returns:
      The trained model (a new one, in the model's dtype; with `config.lora` its adapters are not merged) and the summary.

    Raises:
      UserError: nothing to train on; a loss or gradient that is not finite (names the batch's pairs, which
        `out_dir/not_finite/` lists; with `config.skip_nonfinite` only after several in a row); `out_dir` holds a
        run with other settings, data, model or reference, or another process is writing it.
      Interrupted: SIGTERM, Ctrl-C or a preemption notice came (looked for only with `out_dir`); the reference log-probs
        so far, or a checkpoint, are written. It may be the last one: the same call again then has nothing left to do.
    """
    started = time.perf_counter()
    of_kind(config, TrainConfig, "train", "config")
    start, model = model, trainable_model(model, config)
    store = RowStore.build(data, verified)
    mesh = as_mesh(mesh) or mesh_of(model)
    plan = make_plan(store, config, batch_ways(mesh))
    folder = None if out_dir is None else Path(out_dir)
    with contextlib.ExitStack() as resources:
        if folder is not None:
            # The lock of the run's manifest: within the stage, which holds it already, this adds nothing.
            resources.enter_context(held(manifest_path(folder, folder=True)))
        notice = None if folder is None else resources.enter_context(StopNotice())
        own = reference is None and not has_adapters(start)  # the reference has the weights of the start
        if reference is None and config.loss.contrastive:
            reference = base_model(model) if has_adapters(model) else model
        digest = None  # of the reference's weights
        if folder is not None:
            weights, came = weights_digest(start), None
            if config.loss.contrastive:
                if plan.unknown_references():
                    digest = weights if own else weights_digest(reference)
                came = references_digest(reference, digest, store)
            claim_folder(folder, config, store.fingerprint(), start, weights=weights, references=came)
        if config.loss.contrastive:
            if reference_cache is None and folder is not None:
                reference_cache = folder / "reference"
            cache = None if reference_cache is None else Path(reference_cache)
            stop = None if notice is None else notice.reached
            with contextlib.closing(ReferenceBar(progress, plan, on_reference)) as bar:
                fill_references(
                    store, plan, reference, cache, config.head_chunk, digest=digest, stop=stop, progress=bar
                )
        state, reporter, resumed = _updates(
            model, plan, config, mesh, folder, notice, callback, progress, donate
        )
        if notice is not None and notice.signal is not None:
            # Whatever the caller would do next, it was asked to stop.
            raise Interrupted(
                f"stopped after the last update, {plan.steps}, which is kept in {folder}: "
                "run the same command again to go on",
                notice.signal,
            )
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


def _updates(
    model: Any,
    plan: Plan,
    config: TrainConfig,
    mesh: Mesh | None,
    folder: Path | None,
    notice: StopNotice | None,
    callback: Callback | None,
    progress: bool,
    donate: bool,
) -> tuple[TrainState, Reporter, int]:
    """All updates that are not done yet: the state after them, the reports, and how many updates had been done before."""
    step_fn, state = make_train_step(model, config, plan.steps, mesh, accumulate=plan.accumulates)
    if donate:
        delete_parameters(model)
    iterator, resumed = plan.iterator(), 0
    with contextlib.ExitStack() as resources:
        checkpoints, log = None, None
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
        bar = progress_bar(progress, plan.steps, resumed)
        reporter = Reporter(plan, config, folder, log, callback, bar)
        resources.callback(reporter.close)
        clock = SaveClock(config, resumed)

        for number in range(resumed + 1, plan.steps + 1):
            micros = plan.micro(*next(iterator))
            state, output = step_fn(state, [micro.batch for micro in micros], number - 1)
            reporter.add(number, output, micros)
            if number == resumed + 1 and config.best_metric is not None:
                # Not left to the first checkpoint: a whole run may lie before it.
                reporter.flush()
                reporter.value()
            due = config.save_every is not None and number % config.save_every == 0
            stop = None if notice is None else notice.reached()
            due = due or stop is not None or number == plan.steps
            timed = not due and checkpoints is not None and clock.due(number, checkpoints.writing)
            if checkpoints is not None and (due or timed):
                # A checkpoint is only written of updates whose loss is known to be finite.
                reporter.flush()
                of = None if config.best_metric is None else f"{config.best_mode} {config.best_metric}"
                # Which checkpoint is the best is not left to the clock.
                value = None if timed else reporter.value()
                checkpoints.save(state, iterator.get_state(), value, of)
                clock.saved(number)
            if stop and checkpoints is not None and number < plan.steps:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped after update {number} of {plan.steps}, which is kept in {folder}: "
                    "run the same command again to go on",
                    stop,
                )
        reporter.flush()
    return state, reporter, resumed
