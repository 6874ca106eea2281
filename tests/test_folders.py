"""Folders that appear whole: what was there is never lost, whatever ends the writing."""

import os

import pytest

from caspo_jax.errors import UserError
from caspo_jax.folders import is_free, whole_folder


def write(path, text):
    with whole_folder(path) as folder:
        (folder / "a").write_text(text)


def test_a_folder_appears_whole_and_is_replaced_whole(tmp_path):
    place = tmp_path / "deep" / "place"
    with whole_folder(place) as folder:
        (folder / "a").write_text("old")
        (folder / "b").touch()
        assert not place.exists()
    write(place, "new")
    assert {p.name: p.read_text() for p in place.iterdir()} == {"a": "new"}
    assert os.listdir(place.parent) == ["place"]


def test_behind_a_link_the_folder_is_replaced_and_not_the_link(tmp_path):
    write(tmp_path / "far" / "place", "old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "place")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "place" / "a").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["far", "link"]


def test_a_body_that_fails_changes_nothing(tmp_path):
    write(tmp_path / "place", "old")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "place"):
        raise KeyboardInterrupt
    assert (tmp_path / "place" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["place"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("number", [1, 2])
def test_the_old_folder_survives_an_end_between_the_renames(tmp_path, monkeypatch, error, number):
    """Both were deleted where the old one had been moved away and the new one had no name yet."""
    write(tmp_path / "place", "old")
    calls, rename = [], os.rename

    def ending(*paths):
        calls.append(paths)
        if len(calls) == number:
            raise error
        rename(*paths)

    with monkeypatch.context() as patched:
        patched.setattr("os.rename", ending)
        with pytest.raises(error):
            write(tmp_path / "place", "new")
    assert (tmp_path / "place" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["place"]


def test_what_a_kill_left_is_cleared_unless_it_is_all_there_is(tmp_path):
    for name in (".place.new", ".place.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "place"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == [".place.replaced"]
    write(tmp_path / "place", "new")
    assert os.listdir(tmp_path) == ["place"]


def test_two_writers_do_not_meet(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / ".place.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing"):
            write(tmp_path / "place", "new")


def test_only_what_is_not_there_or_empty_is_free(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    free = {name: is_free(tmp_path / name) for name in ("absent", "empty", "file", ".")}
    assert free == {"absent": True, "empty": True, "file": False, ".": False}
