"""Prompt interventions: what a model is told about sounding as sure as it is."""

from __future__ import annotations

import importlib.resources
import re

from caspo_jax.errors import UserError

# Control first, then from the plainest to the most prescriptive.
INTERVENTIONS = (
    "blank",
    "basic",
    "genuine",
    "human",
    "perception",
    "self_monitoring",
    "self_correction",
    "evidence_gap",
    "hedge_scale",
)
_COMMENT = re.compile(r"\A\s*<!--.*?-->", re.DOTALL)


def load_intervention(name: str) -> str:
    """The text of an intervention, to stand before the question or as system prompt; `blank` is empty.

    The files are `interventions/NAME.md`; the comment at their head, which says what each is for, is left out.

    Args:
        name: one of INTERVENTIONS; hyphens will do for underscores.

    Raises:
        UserError: an unknown name.

    Source: the kinds are those of arXiv 2606.03969, the words this library's own.
    """
    known = name.strip().lower().replace("-", "_")
    if known not in INTERVENTIONS:
        raise UserError(f"no intervention {name!r}: choose from {', '.join(INTERVENTIONS)}")
    file = importlib.resources.files(__package__).joinpath("interventions", f"{known}.md")
    return _COMMENT.sub("", file.read_text(encoding="utf-8"), count=1).strip()
