"""A full disk and too little memory are told in one line; the rest of errors keeps its traceback."""

import errno
import os

import pytest
from absl import flags

from caspo_jax.errors import UserError
from experiments import common
from experiments.exhausted import exhausted


def wrapped(inner):
    """As libraries raise: from what they caught."""
    try:
        raise ValueError("saving failed") from inner
    except ValueError as error:
        return error


@pytest.fixture
def given(monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_string("out_dir", None, "", flag_values=values)
    flags.DEFINE_integer("num_branches", 3, "", flag_values=values)
    values(["program", "--out_dir=here"])
    monkeypatch.setattr("experiments.exhausted.FLAGS", values)


def test_a_full_disk_is_told_with_the_place(given):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert exhausted(full).startswith("--out_dir=here: no space left on the disk")
    assert exhausted(wrapped(full)) == exhausted(full)
    assert exhausted(OSError(errno.ENOSPC, "full", "/some/file")).startswith("/some/file: no space")
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert exhausted(quota) == exhausted(full)
    native = ValueError('Error writing "/x/y": [OS error 28: ENOSPC No space left on device]')
    assert exhausted(wrapped(native)).startswith("--out_dir=here: no space")


def test_a_limit_on_files_is_told_like_a_full_disk(given):
    native = ValueError('Error writing "/x/y": [OS error 27: EFBIG File too large]')
    for error in (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), wrapped(native)):
        assert exhausted(error).startswith("--out_dir=here: larger than files may be here: raise the limit")


def test_where_no_place_is_known_it_is_the_output(given, monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_string("out_dir", None, "", flag_values=values)
    values(["program"])
    monkeypatch.setattr("experiments.exhausted.FLAGS", values)
    assert exhausted(OSError(errno.ENOSPC, "full")).startswith("output: no space left")


def test_causes_count_however_they_are_chained(given):
    def careless():
        try:
            raise MemoryError
        except MemoryError:
            raise KeyError("while handling it")  # noqa: B904 - as libraries do

    with pytest.raises(KeyError) as raised:
        careless()
    assert exhausted(raised.value).startswith("out of memory")
    one, other = KeyError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    assert exhausted(one) is None


def test_too_little_memory_names_what_to_lower(given):
    told = exhausted(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 2147483648 bytes."))
    assert told.startswith("out of memory (asked for 2.0 GiB at once): lower --num_branches,")
    assert exhausted(MemoryError()).startswith("out of memory: lower --num_branches")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EACCES, "x"), RuntimeError("RESOURCE_EXHAUSTED: quota of requests"), KeyError("x")],
)
def test_other_errors_are_not_taken_for_it(given, error):
    assert exhausted(error) is None


def test_programs_end_with_one_line(given, capsys):
    def fails():
        raise wrapped(OSError(errno.ENOSPC, "full"))

    assert common.guarded(fails, ["program"]) == 1
    assert capsys.readouterr().err.startswith("error: --out_dir=here: no space left")

    def forbidden():
        raise PermissionError(errno.EACCES, "Permission denied", "/folder/.out.jsonl.123.tmp")

    assert common.guarded(forbidden, ["program"]) == 1
    assert capsys.readouterr().err == "error: /folder: Permission denied\n"

    def wordy():
        raise UserError("a line\n  and another")

    assert common.guarded(wordy, ["program"]) == 1
    assert capsys.readouterr().err == "error: a line and another\n"

    def broken():
        raise KeyError("a mistake of ours")

    with pytest.raises(KeyError):
        common.guarded(broken, ["program"])
