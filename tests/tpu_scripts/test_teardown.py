"""teardown.sh: a slice is deleted when somebody says so."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.tpu_scripts.conftest import WHERE

DELETE = ["compute", "tpus", "queued-resources", "delete", "slice", *WHERE, "--force", "--quiet"]


def answer_at_a_terminal(world, typed: str) -> tuple[int, str]:
    """Exit code and output of teardown.sh when somebody types at its question."""
    ours, theirs = pty.openpty()
    process = world.start("teardown.sh", stdin=theirs, stderr=subprocess.STDOUT)
    os.close(theirs)
    os.write(ours, typed.encode())
    out, _ = process.communicate(timeout=30)
    os.close(ours)
    return process.returncode, out


@pytest.mark.parametrize("typed", ["y\n", "Y\n", "yes\n"])
def test_teardown_deletes_when_told_to(world, typed):
    world.states("ACTIVE,v6e-8")
    code, out = answer_at_a_terminal(world, typed)
    assert code == 0
    assert "'slice' (v6e-8, ACTIVE) in project proj, zone zone-b" in out
    assert world.calls()[1:] == [DELETE]


@pytest.mark.parametrize("typed", ["\n", "n\n", "yess\n", "\x04"])
def test_teardown_keeps_when_not_told_to(world, typed):
    world.states("ACTIVE,v6e-8")
    code, out = answer_at_a_terminal(world, typed)
    assert code == 1
    assert "nothing is deleted" in out
    assert world.verbs() == ["describe"]


def test_teardown_does_not_ask_with_yes(world):
    world.states("SUSPENDED,v6e-8")
    assert "This deletes" in world.succeed("teardown.sh", "--yes")
    assert world.calls()[1:] == [DELETE]


@pytest.mark.parametrize("said", [b"", b"y\n"])
def test_teardown_without_a_terminal_wants_yes(world, said, tmp_path: Path):
    world.states("ACTIVE,v6e-8")
    (tmp_path / "typed").write_bytes(said)
    with open(tmp_path / "typed") as stdin:
        assert "give --yes" in world.fail("teardown.sh", stdin=stdin)
    assert world.verbs() == ["describe"]


def test_teardown_of_nothing_is_no_error(world):
    world.states("ABSENT")
    assert "nothing to delete" in world.succeed("teardown.sh", "--yes")
    assert world.verbs() == ["describe"]


def test_teardown_reports_a_refused_deletion(world):
    world.answer("delete", code=1, stderr="ERROR: locked\n")
    world.states("ACTIVE,v6e-8")
    code, out, err = world.run("teardown.sh", "--yes")
    assert code == 1
    assert "ERROR: locked" in err
    assert "is deleted" not in out
