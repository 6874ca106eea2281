"""How many questions go together, and which way: by batches or through a queue."""

from __future__ import annotations

import dataclasses

import pytest
from golden_model import KEY

import caspo_jax as cj
from caspo_jax.sampling import search


class Chosen(Exception):
    """What would have grown the trees."""


@pytest.fixture
def way(model_and_tokenizer, questions, monkeypatch):
    def chosen(name):
        def grow(*arguments):
            raise Chosen(name)

        return grow

    monkeypatch.setattr(search, "stream", chosen("queue"))
    monkeypatch.setattr(search, "_in_batches", chosen("batches"))

    def which(function, config, *rest, **options):
        with pytest.raises(Chosen) as caught:
            function(*model_and_tokenizer, questions, config, *rest, KEY, **options)
        return str(caught.value)

    return which


def test_a_queue_takes_what_does_not_fit_together_and_is_alike(way):
    """A queue knows one limit and one threshold, and nobody looks at its trees before they end."""
    sample = cj.SampleConfig(max_new_tokens=8)
    cat = cj.CatConfig(num_branches=2, sample=sample)
    assert way(cj.generate, sample, batch_size=2) == "queue"
    assert way(cj.generate, sample, batch_size=4) == "batches"  # all at once
    assert way(cj.generate, sample, batch_size=2, limits=[8, 8, 3]) == "batches"
    assert way(cj.cat_search, cat, batch_size=4) == "queue"
    assert way(cj.cat_search, dataclasses.replace(cat, stop_decided=True), batch_size=4) == "batches"
    assert way(cj.sampling.cat_sweep, cat, (0.2,), batch_size=4) == "queue"
    assert way(cj.sampling.cat_sweep, cat, (0.2, 0.3), batch_size=4) == "batches"
