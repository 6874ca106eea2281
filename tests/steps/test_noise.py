"""A noisy verifier flips its share of verdicts, always the same ones, and says so in its name."""

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.steps import NoisyVerifier, Verifier, VerifyItem
from caspo_jax.types import Question


class Alternating:
    name = "alternating"

    def verify(self, items):
        return [("correct", "wrong", "unknown")[int(item.step) % 3] for item in items]


ITEMS = [
    VerifyItem(Question(f"q{i % 7}", f"question {i % 7}"), f"prefix {i % 11}", str(i), False)
    for i in range(6000)
]
TRUTH = Alternating().verify(ITEMS)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_share_of_flips_of_each_verdict(rate):
    found = NoisyVerifier(Alternating(), rate, seed=1).verify(ITEMS)
    for verdict in ("correct", "wrong"):
        flips = [a != b for a, b in zip(TRUTH, found) if a == verdict]
        assert np.mean(flips) == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / len(flips)))
    assert all(b == "unknown" for a, b in zip(TRUTH, found) if a == "unknown")
    assert set(found) == {"correct", "wrong", "unknown"}


@pytest.mark.parametrize("change", ["question", "prefix", "step"])
def test_what_is_judged_is_the_step_after_its_prefix_in_its_question(change):
    """Of items that differ in one of the three alone, about half are flipped."""
    items = []
    for i in range(200):
        said = {"question": "?", "prefix": "so", "step": "0"} | {change: str(3 * i)}
        items.append(VerifyItem(Question("q", said["question"]), said["prefix"], said["step"], False))
    flipped = NoisyVerifier(Alternating(), 0.5).verify(items).count("wrong")
    assert 60 < flipped < 140


def test_flips_depend_on_seed_and_content_alone():
    noisy = NoisyVerifier(Alternating(), 0.2, seed=3)
    found = noisy.verify(ITEMS)
    assert noisy.verify(ITEMS[::-1])[::-1] == found
    assert [noisy.verify([item])[0] for item in ITEMS[:50]] == found[:50]
    assert NoisyVerifier(Alternating(), 0.2, seed=4).verify(ITEMS) != found
    # More noise only adds flips.
    more = NoisyVerifier(Alternating(), 0.4, seed=3).verify(ITEMS)
    assert all(m != t for t, f, m in zip(TRUTH, found, more) if f != t)


def test_ends_and_name():
    assert NoisyVerifier(Alternating(), 0.0).verify(ITEMS) == TRUTH
    flipped = {"correct": "wrong", "wrong": "correct", "unknown": "unknown"}
    assert NoisyVerifier(Alternating(), 1.0).verify(ITEMS) == [flipped[v] for v in TRUTH]
    noisy = NoisyVerifier(Alternating(), 0.1, seed=2)
    assert noisy.name == "alternating+noise:0.1/2"
    assert isinstance(noisy, Verifier)
    with pytest.raises(UserError, match=r"label noise 1.5"):
        NoisyVerifier(Alternating(), 1.5)
