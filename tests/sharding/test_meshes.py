"""Eight virtual devices give what one gives, however they are arranged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from processes import run

QUICK = "data:2,fsdp:2,tensor:2"
MESHES = ["data:8", "fsdp:8", "fsdp:2,tensor:4"]  # with fewer KV heads than the tensor axis has devices
SCRIPT = Path(__file__).parent / "on_devices.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(job, mesh) -> arrays; a job's one device run is made once."""
    folder, found = tmp_path_factory.mktemp("meshes"), {}

    def get(job, *specs):
        missing = [spec for spec in ("none", *specs) if (job, spec) not in found]
        (folder / job).mkdir(exist_ok=True)
        if missing:
            run(SCRIPT, job, folder / job, *missing, devices=8)
        for spec in missing:
            found[job, spec] = dict(np.load(folder / job / f"{spec}.npz"))
        return [found[job, spec] for spec in ("none", *specs)]

    return get


def assert_same_updates(want, found):
    assert want.keys() == found.keys()
    assert len(want["loss"]) == 3
    assert np.abs(np.diff(want["loss"])).min() > 1e-3
    assert (
        want["programs"].sum() == 1
    )  # the large ones of training: what an update gives is what the next one takes
    for name in want:
        np.testing.assert_allclose(found[name], want[name], rtol=2e-4, atol=2e-5, err_msg=name)


def assert_same_trees(want, found):
    assert json.loads(str(found["trees"])) == json.loads(str(want["trees"]))
    assert str(found["answers"]) == str(want["answers"])
    for name in ("logprob", "confidence", "measured", "drawn"):
        np.testing.assert_allclose(found[name], want[name], atol=1e-4)


def test_three_updates_equal_those_of_one_device(results):
    assert_same_updates(*results("trees", QUICK))


@pytest.mark.ci
def test_a_search_grows_the_trees_of_one_device(results):
    want, found = results("search", QUICK)
    assert_same_trees(want, found)
    trees = json.loads(str(want["trees"]))
    assert {"pruned", "closed"} <= {status for tree in trees for _, _, status, _ in tree}
    children = [[parent for parent, *_ in tree if parent >= 0] for tree in trees]
    assert any(len(set(parents)) < len(parents) for parents in children), "no node was forked"


@pytest.mark.slow
@pytest.mark.parametrize("pack", ["trees", "rows"])
def test_updates_on_every_mesh(results, pack):
    want, *found = results(pack, QUICK, *MESHES)
    for each in found:
        assert_same_updates(want, each)


@pytest.mark.slow
def test_searches_on_every_mesh(results):
    want, *found = results("search", *MESHES)
    for each in found + results("search_apart", *MESHES):
        assert_same_trees(want, each)
