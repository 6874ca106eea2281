"""How many questions go together, and which way: by batches or through a queue."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from golden_model import KEY

import caspo_jax as cj
from caspo_jax.models import init_cache
from caspo_jax.sampling import search


@pytest.mark.parametrize("columns", [10, 300])
def test_as_many_rows_as_the_cache_and_the_logits_leave_room_for(model_and_tokenizer, monkeypatch, columns):
    model, _ = model_and_tokenizer
    monkeypatch.setattr(search, "CACHE_BYTES", 1 << 22)
    rows = search.default_rows(model, columns)

    def size(rows):
        cache = jax.eval_shape(lambda: init_cache(model.config, rows, columns, model.dtype))
        logits = search.LOGITS_COPIES * rows * model.config.vocab_size
        return sum(x.size * jnp.dtype(x.dtype).itemsize for x in (cache.k, cache.v)) + 4 * logits

    assert 1 < rows < search.MOST_ROWS
    assert size(rows) <= search.CACHE_BYTES < size(rows + 1)


def test_one_row_goes_where_there_is_room_for_none(model_and_tokenizer, monkeypatch):
    monkeypatch.setattr(search, "CACHE_BYTES", 1)
    assert search.default_rows(model_and_tokenizer[0], 10) == 1
    monkeypatch.setattr(search, "CACHE_BYTES", 1 << 50)
    assert search.default_rows(model_and_tokenizer[0], 10) == search.MOST_ROWS


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
