"""Preference pairs to what the viewer draws: chosen against rejected, and both under the policies before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax.evaluation.report.align import token_lengths
from caspo_jax.evaluation.report.choice import TOKEN_BYTES, leading
from caspo_jax.evaluation.report.encode import short, thousandths
from caspo_jax.evaluation.report.folder import Run
from caspo_jax.evaluation.report.spelling import Spelling, Spellings
from caspo_jax.evaluation.report.trace_view import VERDICTS, name_silent
from caspo_jax.preferences.token_tree import common_prefix
from caspo_jax.types import Pair


def view_pairs(
    runs: Sequence[Run], spellings: Mapping[str, Spellings], names: dict[str, dict[str, str]], most: int
) -> dict[str, Any]:
    """{sets, pairs}: of every file the pairs with scores first, then the others in order.

    `most` at most, and fewer where they are long (`leading`).
    """
    sets: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for run in runs:
        for file in run.pairs:
            spelling = spellings[run.name].first()
            ordered = sorted(file.pairs, key=lambda p: p.id not in run.scores)
            shown = ordered[: leading(list(map(_tokens, ordered)), most)]
            sets.append({"run": run.name, "name": file.name, "shown": len(shown), "total": len(file.pairs)})
            for pair in shown:
                scores = run.scores.get(pair.id, ())
                silent = names.setdefault(run.name, {})
                pairs.append(_pair(pair, spelling, silent, scores) | {"set": len(sets) - 1})
    return {"sets": sets, "pairs": pairs}


def _tokens(pair: Pair) -> int:
    """Of both steps, and what the text before them takes of the page in their place."""
    return (
        len(pair.chosen_ids) + len(pair.rejected_ids) + (len(pair.prompt) + len(pair.prefix)) // TOKEN_BYTES
    )


def _pair(
    pair: Pair, spelling: Spelling | None, names: dict[str, str], scores: Sequence[tuple[str, Any, Any]]
) -> dict[str, Any]:
    return {
        "id": pair.id,
        "kind": pair.kind,
        "prompt": pair.prompt,
        "prefix": pair.prefix,
        "trace": pair.trace_id,
        "step": pair.step_index,
        "shared": common_prefix(np.array(pair.chosen_ids), np.array(pair.rejected_ids)),
        "sides": [
            _side(pair.chosen, pair.chosen_ids, spelling, names)
            | {
                "confidence": short(pair.chosen_confidence),
                "verdict": VERDICTS[pair.chosen_verdict],
                "scores": [_scored(name, chosen, pair.chosen_ids) for name, chosen, _ in scores],
            },
            _side(pair.rejected, pair.rejected_ids, spelling, names)
            | {
                "confidence": short(pair.rejected_confidence),
                "verdict": VERDICTS[pair.rejected_verdict],
                "scores": [_scored(name, rejected, pair.rejected_ids) for name, _, rejected in scores],
            },
        ],
    }


def _scored(name: str, logprob: Sequence[float], ids: Sequence[int]) -> dict[str, Any]:
    # Scores of another file's pair with this id cannot be laid on these tokens.
    fits = len(logprob) == len(ids)
    return {
        "policy": name,
        "total": short(sum(logprob)),
        "surprise": thousandths(logprob, sign=-1) if fits else None,
    }


def _side(text: str, ids: Sequence[int], spelling: Spelling | None, names: dict[str, str]) -> dict[str, Any]:
    """The step's tokens; where no vocabulary spells its text, the text alone."""
    if spelling is not None and ids:
        spelt, lengths = token_lengths(ids, spelling.bytes)
        if spelt.startswith(text):
            name_silent(ids, lengths, spelling, names)
            return {"text": spelt, "ids": list(ids), "lengths": lengths}
    return {"text": text, "ids": list(ids), "lengths": None}
