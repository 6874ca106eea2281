"""Policies whose order is known by construction: which metrics find it, and which do not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.errors import UserError

Record = Mapping[str, Any]
VERDICTS = ("apart", "ordered", "not", "undefined")
_ROUNDING = 1e-12  # sums in another order differ by less


def ordering_record(reports: Sequence[Record]) -> dict[str, Any]:
    """What every metric says of policies given from the most faithful to the least.

    `apart`: each is above the next, and their 95 % intervals do not touch; `ordered`: above, but the intervals touch;
    `not`: some policy is below the next; `undefined`: a metric without a value or an interval, such as a rank
    correlation or a skill with words that never vary, or any metric of a single question; or values that are equal, but
    for rounding.

    Args:
      reports: two `report.json` at least, of the same scorers and estimators.

    Returns:
      {scorer: {estimator: {metric: {"verdict", "values": [[value, low, high], ...]}}}}. Skills are named `skill_METRIC`.

    Raises:
      UserError: fewer than two reports, or none of the scorers in all of them.
    """
    if len(reports) < 2:
        raise UserError(f"an order takes two reports at least, found {len(reports)}")
    blocks = [report["faithfulness"] for report in reports]
    found: dict[str, Any] = {}
    for scorer in blocks[0]:
        if not all(scorer in block for block in blocks):
            continue
        mine = [block[scorer] for block in blocks]
        names = [n for n in mine[0] if all(side.get(n, {}).get("steps") for side in mine)]
        found[scorer] = {name: _estimator([side[name] for side in mine]) for name in names}
    if not found:
        raise UserError("the reports have no scorer in common: run all with the same scorers")
    return found


def render_ordering(record: Record, names: Sequence[str]) -> str:
    """A line a metric, a column an estimator: `yes` (intervals apart), `(yes)` (they touch), `NO`, `-` (undefined)."""
    shown = {"apart": "yes", "ordered": "(yes)", "not": "NO", "undefined": "-"}
    lines = [
        f"{' > '.join(names)}?  yes: intervals apart; (yes): they touch; NO: not in this order; -: undefined"
    ]
    for scorer, estimators in record.items():
        metrics = list(next(iter(estimators.values()), {}))
        lines += ["", f"  {scorer:<26}" + "".join(f"{name:>16}" for name in estimators)]
        for metric in metrics:
            cells = "".join(f"{shown[block[metric]['verdict']]:>16}" for block in estimators.values())
            lines.append(f"  {metric:<26}{cells}")
        for metric in ("mfg", "cmfg_star", "spearman"):
            lines += ["", f"  {metric}"]
            for k, name in enumerate(names):
                cells = "".join(f"{_value(block[metric]['values'][k]):>22}" for block in estimators.values())
                lines.append(f"  {name:<14}{cells}")
    return "\n".join([*lines, ""])


def _estimator(blocks: Sequence[Record]) -> dict[str, Any]:
    named = {m: [block["metrics"][m] for block in blocks] for m in blocks[0]["metrics"] if m != "gap"}
    named |= {f"skill_{m}": [block["skill"][m] for block in blocks] for m in blocks[0]["skill"]}
    return {metric: _verdict(sides) for metric, sides in named.items()}


def _verdict(sides: Sequence[Record]) -> dict[str, Any]:
    values = [[side[k] for k in ("value", "low", "high")] for side in sides]
    if any(v is None for triple in values for v in triple):
        verdict = "undefined"
    elif any(a[0] < b[0] - _ROUNDING for a, b in itertools.pairwise(values)):
        verdict = "not"
    elif not all(a[0] > b[0] + _ROUNDING for a, b in itertools.pairwise(values)):
        verdict = "undefined"
    else:
        verdict = "apart" if all(a[1] > b[2] for a, b in itertools.pairwise(values)) else "ordered"
    return {"verdict": verdict, "values": values}


def _value(triple: Sequence[float | None]) -> str:
    value, low, high = ("-" if v is None else f"{v:.2f}" for v in triple)
    return f"{value} [{low}, {high}]"
