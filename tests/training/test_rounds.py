"""What a round hands on to its stages; whole rounds run in tests/experiments/test_rounds.py."""

import dataclasses
import gc
import weakref

import pytest

from caspo_jax.preferences import PairConfig
from caspo_jax.sampling import SampleConfig
from caspo_jax.training import TrainConfig, rounds
from caspo_jax.training.rounds import Recipe, run_rounds

RECIPE = Recipe(SampleConfig(), PairConfig.preset("caspo"), TrainConfig.preset("caspo"))


class Loaded:
    """A policy in memory, until a run is given its weights."""

    given_up = False

    def readable(self, dtype, mesh):
        return Loaded() if self.given_up else self


@pytest.fixture
def seeds(monkeypatch):
    """stage -> the seeds that it was given, a round each; no stage does anything."""
    given = {"sample": [], "pairs": [], "train": []}
    monkeypatch.setattr(rounds.Policy, "load", lambda *_: Loaded())
    monkeypatch.setattr(rounds, "sample_stage", lambda *_, seed, **__: given["sample"].append(seed))
    monkeypatch.setattr(rounds, "annotate_stage", lambda *_, **__: None)
    monkeypatch.setattr(rounds, "pairs_stage", lambda *a, **__: given["pairs"].append(a[3].seed))
    monkeypatch.setattr(rounds, "train_stage", lambda *a, **__: given["train"].append(a[4].seed))
    monkeypatch.setattr(rounds, "export_stage", lambda *a, **__: a[2])
    return given


def run(folder, recipe, seed):
    run_rounds(
        "base", [], folder, recipe, verifier=lambda _: None, extract=None, equal=None, rounds=2, seed=seed
    )


def test_the_choice_of_pairs_follows_the_seed_of_the_run(seeds, tmp_path):
    run(tmp_path, RECIPE, 0)
    run(tmp_path, RECIPE, 3)
    run(tmp_path, dataclasses.replace(RECIPE, pairs=PairConfig(pick="random", seed=10)), 3)
    assert seeds["pairs"] == [0, 0, 3, 3, 13, 13]
    assert seeds["sample"] == seeds["train"] == [1, 2, 3001, 3002, 3001, 3002]


def test_updates_get_the_memory_of_policy_and_judge_and_the_export_a_policy_that_can_be_read(
    seeds, monkeypatch, tmp_path
):
    class Judge:
        pass

    judges, exported = [], []

    def verifier(policy):
        judge = Judge()
        judges.append(weakref.ref(judge))
        return judge

    def trained(policy, *_, donate, **__):
        gc.collect()
        assert judges[-1]() is None
        policy.given_up = donate

    def export(policy, run, folder, **_):
        exported.append(policy.given_up)
        return folder

    monkeypatch.setattr(rounds, "train_stage", trained)
    monkeypatch.setattr(rounds, "export_stage", export)
    run_rounds("base", [], tmp_path, RECIPE, verifier=verifier, extract=None, equal=None, rounds=2)
    assert exported == [False, False]
