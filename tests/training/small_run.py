"""A small run that several tests look at: its data and settings, and what a run leaves."""

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from caspo_jax.training import LossConfig, TrainConfig, train
from caspo_jax.types import Pair

from helpers import VOCAB, Toy  # isort: skip

CONFIG = TrainConfig(
    loss=LossConfig(dpop_lambda=5.0, nll_alpha=1.0, nll_on="verified"),
    learning_rate=1e-2,
    batch_size=4,
    epochs=2,
    save_every=2,
    min_length=16,
    displacement_margin=100.0,
    tensorboard=False,
)
TIMES = ("seconds", "tokens_per_second")


def make_pairs(count=10, seed=0):
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return tuple(int(i) for i in rng.integers(1, VOCAB, rng.integers(low, high)))

    return [
        Pair(
            id=f"q{i}-s0",
            kind="wrong",
            prompt="",
            prefix="",
            chosen="",
            rejected="",
            prompt_ids=ids(3, 6),
            prefix_ids=ids(0, 4),
            chosen_ids=ids(1, 5),
            rejected_ids=ids(1, 5),
            ends_trace=(False, False),
            weight=1.0 + i % 2,
        )
        for i in range(count)
    ]


PAIRS = make_pairs()
VERIFIED = [(pair.prompt_ids + pair.prefix_ids, pair.chosen_ids) for pair in PAIRS[:6]]


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def lines(folder):
    records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def run(folder, config=CONFIG, **options):
    """The run, or what is left of it to do, in a folder."""
    return train(Toy(), PAIRS, config, verified=VERIFIED, out_dir=folder, **options)


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


class Stopped(Exception):
    """What ends a run that `stop_at` stops."""


def stop_at(step):
    """A callback that ends the run once update `step` is reported."""

    def callback(record):
        if record["step"] == step:
            raise Stopped

    return callback
