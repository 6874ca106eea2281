"""Whose folder a run's is: refused to another run, cleared of its own files alone."""

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest

from caspo_jax import locks
from caspo_jax.errors import UserError
from caspo_jax.outputs import manifest_path
from caspo_jax.preferences.packing import pack_pairs
from caspo_jax.training import LossConfig, train
from caspo_jax.training.metrics_log import MetricsWarning
from caspo_jax.training.restore import restore_trained
from caspo_jax.training.run_folder import clear_folder

from helpers import Toy  # isort: skip
from small_run import CONFIG, PAIRS, VERIFIED, Stopped, assert_same, run, stop_at  # isort: skip


@pytest.mark.parametrize(
    "change, named",
    [
        ({"config": dataclasses.replace(CONFIG, learning_rate=1e-3)}, "learning_rate"),
        ({"data": PAIRS[:-1]}, "data"),
        ({"model": Toy(seed=1)}, "model"),
    ],
)
def test_a_folder_of_another_run_is_refused(uninterrupted, change, named):
    folder, _, _ = uninterrupted
    arguments = {"model": Toy(), "data": PAIRS, "config": CONFIG} | change
    with pytest.raises(UserError, match=named):
        train(**arguments, verified=VERIFIED, out_dir=folder)


SIGMOID = dataclasses.replace(CONFIG, loss=LossConfig())


def given(value):
    batch = pack_pairs(PAIRS, 16, 0)
    values = np.where(np.arange(len(PAIRS)) < 3, value, np.nan).astype(np.float32)
    return [dataclasses.replace(batch, reference_chosen=values, reference_rejected=values)]


@pytest.mark.parametrize("stopped", [True, False])
def test_a_run_with_another_reference_is_refused(tmp_path, stopped):
    """Its first updates, or all of them, were made with other log-probs."""

    def go(data=PAIRS, **options):
        return train(Toy(), data, SIGMOID, out_dir=tmp_path, **options)[1]

    if stopped:
        with pytest.raises(Stopped):
            go(reference=Toy(seed=5), callback=stop_at(3))
    else:
        go(reference=Toy(seed=5))
    for options in ({"reference": Toy(seed=9)}, {}, {"reference": Toy(seed=5), "data": given(-1.0)}):
        with pytest.raises(UserError, match="differs in reference"):
            go(**options)
    assert go(reference=Toy(seed=5)).resumed_from == (2 if stopped else 5)


def test_a_run_with_other_given_log_probs_is_refused(tmp_path):
    train(Toy(), given(-1.0), SIGMOID, out_dir=tmp_path)
    with pytest.raises(UserError, match="differs in reference"):
        train(Toy(), given(-2.0), SIGMOID, out_dir=tmp_path)
    with pytest.raises(UserError, match="differs in reference"):  # of which the others come
        train(Toy(), given(-1.0), SIGMOID, out_dir=tmp_path, reference=Toy(seed=9))
    assert train(Toy(), given(-1.0), SIGMOID, out_dir=tmp_path, reference=Toy())[1].resumed_from == 5


@contextlib.contextmanager
def locked_by_another(folder):
    """What another process's lock is to this one, without the process."""
    fcntl = pytest.importorskip("fcntl")
    with open(folder / ".manifest.json.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def test_a_folder_that_another_process_trains_into_is_refused(tmp_path):
    with locked_by_another(tmp_path), pytest.raises(UserError, match="another run is writing"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".manifest.json.lock"]


def test_a_folder_is_held_while_it_is_trained_into(tmp_path):
    def at(record):
        with pytest.raises(BlockingIOError), locked_by_another(tmp_path):
            pass

    run(tmp_path, callback=at)
    with locked_by_another(tmp_path):
        pass


def test_who_holds_the_folder_already_holds_it_after_training_too(tmp_path):
    """The stage, which also writes the manifest."""
    with locks.held(manifest_path(tmp_path, folder=True)):
        run(tmp_path)
        with pytest.raises(BlockingIOError), locked_by_another(tmp_path):
            pass
    with locked_by_another(tmp_path):
        pass


def test_policies_that_hardly_differ_are_told_apart(uninterrupted):
    almost = Toy()
    almost.embed[...] = almost.embed[...].at[0, 0].add(1e-6)
    with pytest.raises(UserError, match="differs in model"):
        train(almost, PAIRS, CONFIG, verified=VERIFIED, out_dir=uninterrupted[0])
    with pytest.raises(UserError, match="started from another policy"):
        restore_trained(Toy(seed=1), uninterrupted[0])


@pytest.mark.parametrize("text", ["", '{"config": {', "[]", "{}"])
def test_a_description_that_cannot_be_read_is_one_line(uninterrupted, tmp_path, text):
    folder = shutil.copytree(uninterrupted[0], tmp_path / "run")
    (folder / "run.json").write_text(text)
    for read in (lambda: run(folder), lambda: restore_trained(Toy(), folder)):
        with pytest.raises(UserError, match=r"run\.json: (unreadable|describes no training run)"):
            read()


def test_settings_of_a_newer_version_are_named(uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted[0], tmp_path / "run")
    description = json.loads((folder / "run.json").read_text())
    description["config"]["loss"]["margin_of_tomorrow"] = 1
    (folder / "run.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"run\.json: .* does not know: loss\.margin_of_tomorrow; update"):
        restore_trained(Toy(), folder)
    description["config"] = json.loads(json.dumps(CONFIG.shaping())) | {"tomorrow": 1}
    (folder / "run.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="holds a run that differs in tomorrow:"):
        run(folder)


def test_a_damaged_line_of_metrics_costs_that_line_alone(uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted[0], tmp_path / "run")
    records = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join([records[0], records[1][:20] + b"\n", *records[2:]]))
    with pytest.warns(MetricsWarning, match=r"metrics\.jsonl:2: a damaged line"):
        model, summary = run(folder)
    assert_same(model, uninterrupted[1])
    assert [record["step"] for record in summary.history] == [1, 3, 4, 5]
    assert (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True) == [records[0], *records[2:]]


def test_a_folder_is_cleared_of_its_run_and_of_nothing_else(uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted[0], tmp_path / "run")
    for name in ("tensorboard/events.out.tfevents.1.host", "not_finite/update_000003.json"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("1")
    before = {p for p in folder.rglob("*") if p.is_file()}
    (folder / "checkpoints" / "removed-3").mkdir()  # a removal cut short
    (tmp_path / "elsewhere").mkdir()
    (folder / "checkpoints" / "2").symlink_to(tmp_path / "elsewhere")
    theirs = {folder / name for name in ("pairs.jsonl", "checkpoints/notes.txt", "sub/metrics.jsonl")}
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("1")
    clear_folder(folder)
    assert (tmp_path / "elsewhere").is_dir()
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["notes.txt"]
    shared = {p for p in before if p.parent.name == "reference"}
    assert shared
    assert {p for p in folder.rglob("*") if p.is_file()} == theirs | shared
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"checkpoints", "reference", "sub"}
    (folder / "metrics.jsonl").write_text("1")
    clear_folder(folder)  # it holds no run
    assert (folder / "metrics.jsonl").exists()


def test_files_that_no_run_wrote_are_not_taken_up(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("theirs")
    with pytest.raises(UserError, match=r"metrics\.jsonl but no run\.json"):
        train(Toy(), PAIRS, CONFIG, verified=VERIFIED, out_dir=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
