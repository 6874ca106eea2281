"""Are questions used twice? Those that a setting was chosen on say nothing about how it does on new ones."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from caspo_jax.store import short_hash
from caspo_jax.types import Question


def prompt_digest(question: Question) -> str:
    """A short hash of what is asked, whatever the question's id and gold answer; white space does not count.

    >>> prompt_digest(Question("a", question="1 + 1?")) == prompt_digest(Question("b", question=" 1 +  1?", gold="2"))
    True
    """
    if question.prompt_ids is not None:
        asked = json.dumps(list(question.prompt_ids))
    else:
        asked = " ".join((question.prompt or question.question or "").split())
    return short_hash(asked)


def used_before(questions: Sequence[Question], digests: Collection[str]) -> list[Question]:
    """Those of the questions whose `prompt_digest` is among the digests.

    >>> asked = [Question("a", question="1 + 1?"), Question("b", question="2 + 2?")]
    >>> [q.id for q in used_before(asked, [prompt_digest(asked[1])])]
    ['b']
    """
    known = set(digests)
    return [question for question in questions if prompt_digest(question) in known]
