"""Settings chosen on questions of their own: what is sampled to choose them."""

import pytest

from caspo_jax.evaluation import tuning
from caspo_jax.evaluation.strategies import STRATEGIES, Settings

GREEDY = ("greedy", "cot_decoding")


def test_no_pool_is_sampled_for_strategies_that_draw_nothing_from_it(monkeypatch):
    monkeypatch.setattr(tuning, "sample_pool", lambda *_: pytest.fail("a pool was sampled"))
    told = []
    assert tuning.tune(None, Settings(), GREEDY, lambda done, steps: told.append(steps)) == (Settings(), [])
    assert told == []


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in (*GREEDY, "cat", "cat_paper")])
def test_a_pool_is_sampled_for_all_that_take_its_temperature(name, monkeypatch):
    class SampledError(Exception):
        pass

    def sampled(context, settings):
        raise SampledError

    monkeypatch.setattr(tuning, "sample_pool", sampled)
    with pytest.raises(SampledError):
        tuning.tune(None, Settings(), (*GREEDY, name))
