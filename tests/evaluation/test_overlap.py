"""Questions that were used before are known by what they ask."""

from caspo_jax.evaluation.overlap import prompt_digest, used_before
from caspo_jax.types import Question


def test_what_is_asked_counts_and_nothing_else():
    asked = Question("a", question="1 + 1?", gold="2")
    assert prompt_digest(asked) == prompt_digest(Question("b", question=" 1 +\n1? ", extra={"level": 1}))
    assert prompt_digest(asked) == prompt_digest(Question("c", question="said otherwise", prompt="1 + 1?"))
    assert prompt_digest(asked) != prompt_digest(Question("a", question="1 + 2?"))
    assert prompt_digest(Question("d", prompt_ids=(1, 2))) != prompt_digest(Question("d", prompt_ids=(12,)))
    assert prompt_digest(Question("e", question="half a character: \ud800"))


def test_those_used_before_come_back_in_order():
    asked = [Question(str(i), question=f"{i} + 1?") for i in range(5)]
    digests = [prompt_digest(asked[i]) for i in (3, 1)]
    assert used_before(asked, digests) == [asked[1], asked[3]]
    assert used_before(asked, []) == []
