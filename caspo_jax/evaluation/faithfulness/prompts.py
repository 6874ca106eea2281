"""Prompt interventions: what a model is told about sounding as sure as it is."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import re
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.models import render_chat
from caspo_jax.types import Question

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


def with_intervention(question: Question, name: str, tokenizer: Any) -> Question:
    """The question asked under an intervention: as system message where the chat template has one, else before it.

    `question` stays as it is, so that answers, verdicts and comparisons by question still meet; `prompt` is the final text.

    Args:
      question: with a text; `blank` returns it unchanged.
      name: one of INTERVENTIONS.
      tokenizer: whose chat template is applied.

    Raises:
      UserError: an unknown name, a question of prompt or prompt_ids alone.
    """
    text = load_intervention(name)
    if not text:
        return question
    if question.question is None or question.prompt is not None or question.prompt_ids is not None:
        raise UserError(f"{question.name}: an intervention needs a question that is no final prompt")
    if not tokenizer.chat_template:
        return dataclasses.replace(question, prompt=f"{text}\n\n{question.question}")
    system = [{"role": "system", "content": text}, {"role": "user", "content": question.question}]
    merged = [{"role": "user", "content": f"{text}\n\n{question.question}"}]
    for messages in (system, merged):
        with contextlib.suppress(UserError):  # many templates refuse a system message
            prompt = render_chat(tokenizer, messages, question.name)
            if text in prompt:
                return dataclasses.replace(question, prompt=prompt)
    raise UserError(
        "the chat template fails, or drops the intervention's text; write it into the questions instead"
    )
