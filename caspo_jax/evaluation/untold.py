"""What the judges of a faithfulness report could not tell: the figures of a judge that seldom can say little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def untold(report: Mapping[str, Any]) -> list[str]:
    """A remark on each judge of `report_record` that left something open; none where all was told."""
    remarks = [
        f"{scorer}: {said['missing']} of {said['steps'] + said['missing']} steps have no score of it"
        for scorer, said in (report.get("decisiveness") or {}).items()
        if said.get("missing")
    ]
    judged = report.get("continuations") or {}
    if judged.get("unparsed"):
        remarks.append(
            f"prefix: of {judged['unparsed']} of {judged['judged']} continuations it could not be told whether they "
            "contradict their step"
        )
    return remarks
