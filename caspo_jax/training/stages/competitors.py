"""Competitors made a part at a time and written down, so that a stage that was killed goes on where it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from caspo_jax.outputs import discard_unfinished
from caspo_jax.preferences import CompetitorMaker, NoCompetitor, Rival
from caspo_jax.preferences.candidates import Candidate
from caspo_jax.preferences.identity import stable_hash
from caspo_jax.training.stages.policy import open_output
from caspo_jax.types import Progress

_BATCHES = 4  # between two writes: enough that a batch's slots are refilled
_PART = 1024  # competitors between two, where the batch goes by memory


@contextmanager
def kept_competitors(
    make: CompetitorMaker,
    output: Path,
    settings: Mapping[str, Any],
    *,
    batch_size: int | None,
    overwrite: bool,
    progress: Progress | None = None,
) -> Iterator[CompetitorMaker]:
    """The same competitors as `make`, in parts that `OUTPUT.competitors.partial` keeps until the context ends well.

    Args:
      make: a competitor depends on its candidate alone.
      output: the pairs' own file.
      settings: what decides them, for the manifest.
      batch_size: rows on the device at once, None: by memory; some batches are a part.
      overwrite: forget what was made with other settings.
      progress: called with (competitors done, in all).
    """
    written = open_output(_path(output), "pairs/competitors", settings, overwrite, "competitors")

    def kept(
        candidates: Sequence[Candidate], kind: Literal["step", "token"]
    ) -> Sequence[Rival | NoCompetitor]:
        names = [
            stable_hash(c.trace_id, c.step_index, c.prompt_ids, c.prefix_ids, c.token_ids, kind)
            for c in candidates
        ]
        found = {record["id"]: _read(record) for record in written.records()}
        todo = list({name: c for name, c in zip(names, candidates, strict=True) if name not in found}.items())
        # Contexts of about one length together: the longest decides how many rows there is room for.
        todo.sort(key=lambda named: _context(named[1]))
        size = _PART if batch_size is None else _BATCHES * batch_size
        for start in range(0, len(todo), size):
            if progress is not None:
                progress(len(found), len(found) + len(todo) - start)
            part = todo[start : start + size]
            made = make([candidate for _, candidate in part], kind)
            written.append([_record(name, rival) for (name, _), rival in zip(part, made, strict=True)])
            found |= {name: rival for (name, _), rival in zip(part, made, strict=True)}
        if progress is not None:
            progress(len(found), len(found))
        return [found[name] for name in names]

    yield kept
    forget_competitors(output)


def forget_competitors(output: Path) -> None:
    """Removes what was kept: the pairs of `output` are written."""
    discard_unfinished(_path(output))


def _context(candidate: Candidate) -> int:
    return len(candidate.prompt_ids) + len(candidate.prefix_ids) + len(candidate.token_ids)


def _path(output: Path) -> Path:
    return output.with_name(output.name + ".competitors")


def _record(name: str, rival: Rival | NoCompetitor) -> dict[str, Any]:
    kind = "rival" if isinstance(rival, Rival) else "none"
    return {"id": name, kind: dataclasses.asdict(rival)}


def _read(record: Mapping[str, Any]) -> Rival | NoCompetitor:
    if "none" in record:
        return NoCompetitor(**record["none"])
    rival = record["rival"]
    return Rival(**{**rival, "token_ids": tuple(rival["token_ids"])})
