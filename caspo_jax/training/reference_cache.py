"""Reference log-probs on disk: what depends on policy, pairs and packing alone is computed once, for all runs."""

from __future__ import annotations

import hashlib
import json
import signal
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.distributed import barrier, is_writer
from caspo_jax.errors import Interrupted, UserError
from caspo_jax.store import replacing
from caspo_jax.training.base_plan import Plan
from caspo_jax.training.data import RowStore
from caspo_jax.training.reference_identity import reference_identity
from caspo_jax.training.step_logprobs import batch_reference

_FORMAT = "caspo_jax.reference/1"
_WRITE_EVERY = 60.0  # seconds of a pass that a kill may cost


class ReferenceCacheWarning(UserWarning):
    """An entry of the cache could not be read; it is computed again."""


class ReferenceCache:
    """Log-probs of a run's pairs under its reference, one file a reference, data set and packing.

    The file's name is a hash of the reference's weights, config and dtype (of its class and attributes, if it has no
    config), of the tokens of all pairs, and of the shape
    of the packed rows (the loss runs the same program, so that the first update's log-ratios are 0). Beta and the like,
    the optimiser and the pairs' weights are not in it. A file appears whole or not at all, and a folder may be
    shared by any number of runs.
    """

    def __init__(self, folder: Path, reference: Any, store: RowStore, plan: Plan, digest: str | None = None):
        key = {
            "format": _FORMAT,
            **reference_identity(reference, digest),
            "pairs": store.pairs_fingerprint(),
            "packing": plan.packing,
        }
        self.path = folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.npz"

    def read(self, count: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Chosen and rejected log-probs [count], NaN where not known; None (with a warning) if there is nothing to read."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                chosen, rejected = arrays["chosen"], arrays["rejected"]
            if any(a.shape != (count,) or a.dtype != np.float32 for a in (chosen, rejected)):
                raise ValueError("not the log-probs of these pairs")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(
                f"{self.path}: unreadable reference log-probs ({error}); computing them again",
                ReferenceCacheWarning,
                stacklevel=2,
            )
            return None
        return chosen, rejected

    def write(self, chosen: np.ndarray, rejected: np.ndarray) -> None:
        """Replace the entry, unless nothing is known; with several processes, one writes."""
        if not is_writer() or not (np.isfinite(chosen) & np.isfinite(rejected)).any():
            return
        with replacing(self.path) as temporary, open(temporary, "wb") as file:  # to a path, savez adds .npz
            np.savez(file, chosen=chosen, rejected=rejected)


def fill_references(
    store: RowStore,
    plan: Plan,
    reference: Any,
    folder: Path | None,
    chunk: int | None = None,
    *,
    digest: str | None = None,
    stop: Callable[[], signal.Signals | None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Give every pair that the run reads its reference log-probs: those given, those of the cache, or computed now.

    What is computed goes to the cache every minute, and however the pass ends.

    Args:
      store: its reference columns are filled in.
      plan: which pairs are read, and the rows that they are computed in.
      reference: the frozen model.
      folder: of the cache; None keeps nothing.
      chunk: as in `step_sums`.
      digest: the reference's `weights_digest`, if that is known; default: taken here.
      stop: asked after every micro-batch, of several processes by all, for the signal that ends the pass there.
      progress: called with (pairs done, pairs in all) after every micro-batch.

    Returns:
      How many micro-batches were computed.

    Raises:
      UserError: log-probs that are not finite, with the pairs' names.
      Interrupted: `stop` said so.
    """
    columns = (store.reference_chosen, store.reference_rejected)
    own = [np.full_like(column, np.nan) for column in columns]  # the reference's, not what the caller gave
    cache = None
    if folder is not None and next(plan.reference_micros(), None) is not None:
        cache = ReferenceCache(folder, reference, store, plan, digest)
        barrier("reference cache")  # so that all find the entry, or none
        found = cache.read(len(store.chosen))
        if found is not None:
            own = [np.array(column) for column in found]
            known = np.isfinite(own[0]) & np.isfinite(own[1])
            for column, kept in zip(columns, own):
                column[:] = np.where(np.isnan(column) & known, kept, column)
    bad: list[int] = []
    computed, done, total, written = 0, 0, plan.unknown_references(), time.monotonic()
    missing = np.isnan(columns[0]) | np.isnan(columns[1])
    try:
        for micro in plan.reference_micros():
            known = micro.pairs >= 0
            pairs = micro.pairs[known]
            values = [x[: len(known)][known] for x in batch_reference(reference, micro.batch, chunk=chunk)]
            for column, kept, value in zip(columns, own, values):
                kept[pairs] = value
                column[pairs] = np.where(np.isnan(column[pairs]), value, column[pairs])
            bad += pairs[~(np.isfinite(values[0]) & np.isfinite(values[1]))].tolist()
            computed += 1
            done += int(missing[pairs].sum())
            missing[pairs] = False
            if progress is not None:
                progress(done, total)
            if stop is not None and (asked := stop()) is not None:
                raise Interrupted(
                    f"stopped after the reference's log-probs of {done} of {total} pairs, which are kept "
                    f"in {folder}: run the same command again to go on",
                    asked,
                )
            if cache is not None and time.monotonic() - written >= _WRITE_EVERY:
                cache.write(*own)
                written = time.monotonic()
    finally:
        if cache is not None and computed:
            cache.write(*own)
    if bad:
        raise UserError(
            f"the reference's log-probs are not finite for pairs {store.names(np.unique(bad))}: "
            "check the reference's weights and these pairs' token ids"
        )
    return computed
