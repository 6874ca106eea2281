"""Exports: written once, under their name when they are whole, and over nothing that they did not write."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from caspo_jax.errors import UserError
from caspo_jax.models import LoraConfig, add_lora, save_adapter, save_pretrained
from caspo_jax.training import TrainConfig, make_train_step
from caspo_jax.training.checkpoints import Checkpoints
from caspo_jax.training.run_folder import claim_folder
from caspo_jax.training.stages import Policy, export_adapter, export_stage, merge_stage
from caspo_jax.training.train_step import delete_parameters, trainable_model

from helpers import tiny_decoder  # isort: skip


def make_run(folder, policy, update=1, config=TrainConfig()):  # noqa: B008 - frozen
    """A run whose checkpoint at `update` has `update` added to every parameter that is trained."""
    model = trainable_model(policy.model, config)
    claim_folder(folder, config, "data", policy.model)
    _, state = make_train_step(model, config, 1)
    params = jax.tree.map(lambda leaf: leaf + update, state.params)
    checkpoints = Checkpoints(folder / "checkpoints", 9, background=False)
    checkpoints.save(dataclasses.replace(state, step=jnp.int32(update), params=params), {})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "policy"
    save_pretrained(tiny_decoder(), None, folder, caspo={"step_delimiter": ";"})
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(add_lora(Policy.load(base).model, LoraConfig(1), jax.random.key(0)), folder)
    return folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run", Policy.load(base))


@pytest.fixture
def policy(base, tmp_path):
    return Policy.load(shutil.copytree(base, tmp_path / "base"))


def test_a_policy_whose_weights_were_given_up_is_read_again(policy):
    assert policy.readable() is policy
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(policy.model))]
    delete_parameters(policy.model)
    again = policy.readable()
    assert (again.hash, again.path, again.settings) == (policy.hash, policy.path, policy.settings)
    for old, new in zip(before, jax.tree.leaves(nnx.state(again.model)), strict=True):
        np.testing.assert_array_equal(old, new)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def added(policy, folder):
    """What an export adds to its base's weights, the same everywhere."""
    before, after = (load_file(f"{path}/model.safetensors") for path in (policy.path, folder))
    found = {round(float(x), 3) for name in before for x in np.ravel(after[name] - before[name])}
    assert len(found) == 1
    return found.pop()


def test_an_export_is_written_once(policy, run, tmp_path):
    out = tmp_path / "out"
    assert export_stage(policy, run, out) == out
    assert added(policy, out) == 1
    assert json.loads((out / "caspo.json").read_text()) == {"step_delimiter": ";"}
    written = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    export_stage(policy, run, out)
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == written
    assert {p.name for p in tmp_path.iterdir()} == {"base", "out"}


def test_a_run_that_went_on_is_refused_by_name_and_overwrites(policy, run, tmp_path):
    again, out = shutil.copytree(run, tmp_path / "run"), tmp_path / "out"
    export_stage(policy, again, out)
    make_run(again, policy, update=2)
    with pytest.raises(UserError, match=r"update: 1 then, 2 now"):
        export_stage(policy, again, out)
    assert added(policy, out) == 1
    export_stage(policy, again, out, overwrite=True)
    assert added(policy, out) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_an_export_reads_is_never_written_over(policy, adapter, tmp_path, overwrite):
    """Neither itself, nor by another name, nor as a part of what would be replaced."""
    (tmp_path / "link").symlink_to(policy.path)
    inner = shutil.copytree(adapter, tmp_path / "outer" / "adapter")
    (inner.parent / "config.json").write_text("{}")
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    before = contents(tmp_path)
    for source, out in (
        (adapter, policy.path),
        (adapter, tmp_path / "link"),
        (adapter, f"{policy.path}/../base"),
        (copy, copy),
        (inner, inner.parent),
    ):
        with pytest.raises(UserError, match="what is read"):
            merge_stage(policy, source, out, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_a_checkpoint_of_somebody_else_s_stays_unless_it_may_go(policy, base, adapter, tmp_path):
    out = shutil.copytree(base, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    with pytest.raises(UserError, match="no manifest in it"):
        merge_stage(policy, adapter, out)
    assert contents(out) == before
    merge_stage(policy, adapter, out, overwrite=True)
    assert (out / "manifest.json").is_file()
    assert not (out / "notes.txt").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"base", "out"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_checkpoint_stays(policy, adapter, tmp_path, overwrite):
    (tmp_path / "folder").mkdir()
    for name in ("folder/thesis.tex", "folder/manifest.json", "file"):
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    for name in ("folder", "file"):
        with pytest.raises(UserError, match="no checkpoint folder"):
            merge_stage(policy, adapter, tmp_path / name, overwrite=overwrite)
    assert contents(tmp_path) == before


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "there, moment",
    [
        (False, (".out.export", "out")),
        (True, ("out", ".out.replaced")),
        (True, (".out.export", "out")),
        (True, (".out.replaced",)),  # its removal
    ],
)
def test_killed_between_writing_and_naming_it_goes_on(policy, run, tmp_path, monkeypatch, there, moment):
    again, out = shutil.copytree(run, tmp_path / "run"), tmp_path / "out"
    if there:
        export_stage(policy, again, out)
    make_run(again, policy, update=2)

    def dying(call):
        def instead(*paths, **options):
            if tuple(Path(path).name for path in paths) == moment and Path(paths[0]).exists():
                raise Killed
            return call(*paths, **options)

        return instead

    with monkeypatch.context() as patched:
        patched.setattr("os.rename", dying(os.rename))
        patched.setattr("shutil.rmtree", dying(shutil.rmtree))
        with pytest.raises(Killed):
            export_stage(policy, again, out, overwrite=there)
    assert not out.exists() or (out / "model.safetensors").is_file()  # never a part of one
    export_stage(policy, again, out)
    assert added(policy, out) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"base", "out", "run"}


def test_links_and_dots_name_the_folder_behind_them(policy, adapter, tmp_path, monkeypatch):
    for name in ("real", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("real")
    merge_stage(policy, adapter, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(tmp_path / "here")
    merge_stage(policy, adapter, ".")
    for name in ("real", "here"):
        assert (tmp_path / name / "model.safetensors").is_file()
        assert (tmp_path / name / "manifest.json").is_file()


def test_what_was_exported_needs_its_run_no_longer(policy, run, tmp_path):
    again, out = shutil.copytree(run, tmp_path / "run"), tmp_path / "out"
    export_stage(policy, again, out)
    shutil.rmtree(again / "checkpoints")
    before = contents(out)
    assert export_stage(policy, again, out) == out
    assert contents(out) == before
    for call, place in ((export_stage, tmp_path / "new"), (export_adapter, out)):
        with pytest.raises(UserError, match=r"train first|format: None then"):
            call(policy, again, place)
    (again / "run.json").write_text("{}")
    with pytest.raises(UserError, match="train first"):
        export_stage(policy, again, out)


def test_adapters_are_written_by_themselves(policy, tmp_path):
    run = make_run(tmp_path / "run", policy, config=TrainConfig(lora=LoraConfig(1)))
    out, merged = (
        export_adapter(policy, run, tmp_path / "out"),
        merge_stage(policy, tmp_path / "out", tmp_path / "m"),
    )
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == policy.path
    export_adapter(policy, run, out)
    whole = export_stage(policy, run, tmp_path / "whole")
    for name, tensor in load_file(merged / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, load_file(whole / "model.safetensors")[name])
    with pytest.raises(UserError, match="format: 'peft' then"):
        export_stage(policy, run, out)


def test_a_place_where_nothing_can_be_written_is_found_out_before_the_work(
    policy, adapter, tmp_path, monkeypatch
):
    def refused(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    def work(*args):
        raise AssertionError("it would be lost")

    monkeypatch.setattr("caspo_jax.training.stages.export.load_adapter", work)
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(PermissionError):
        merge_stage(policy, adapter, tmp_path / "out")


def test_two_exports_at_once_do_not_meet(policy, adapter, tmp_path):
    """The second would remove what the first has half written."""
    fcntl = pytest.importorskip("fcntl")
    half = tmp_path / ".out.export" / "model.safetensors"
    half.parent.mkdir()
    half.write_text("half")
    with open(tmp_path / ".out.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another run is writing .*out: "):
            merge_stage(policy, adapter, tmp_path / "out")
    assert half.read_text() == "half"
    merge_stage(policy, adapter, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"base", "out"}
