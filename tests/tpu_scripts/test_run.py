"""run.sh: a command on every worker, which outlives its connection, is resumed and stopped."""

import json
import os
import signal

import pytest

WILD = ["two words", "it's", 'say "no"', "$HOME `id` \\", "line\nbreak", "*", "", "-x", "Grüße; rm -rf /"]


def test_arguments_reach_the_program_on_every_worker_unchanged(world):
    world.set_up()
    world.succeed("run.sh", "--run=wild", "--", "python", "-m", "program", *WILD)
    assert world.finished("wild") == [0, 0]
    for folder in world.folders("wild"):
        printed = [line for line in (folder / "log").read_text().splitlines() if line.startswith("[")]
        assert [json.loads(line) for line in printed] == [["-m", "program", *WILD]]
    assert len(world.records("python")) == 2
    assert all(r["environment"]["VIRTUAL_ENV"].endswith("caspo_jax/.venv") for r in world.records("python"))


def test_log_and_exit_code_are_each_workers_own(world):
    world.set_up()
    script = "case $HOME in */0) echo fine ;; *) echo broken >&2; exit 7 ;; esac"
    world.succeed("run.sh", "--run=r", "--", "sh", "-c", script)
    assert world.finished("r") == [0, 7]
    fine, broken = [(f / "log").read_text() for f in world.folders("r")]
    assert "fine" in fine
    assert "broken" in broken
    assert "exit code 7" in broken
    assert (world.folders("r")[0] / "revision").read_text().strip() == world.git(
        "rev-parse", "--short", "HEAD"
    )


def test_a_run_outlives_its_connection(world):
    world.set_up()
    go = world.root / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.05; done; echo done"
    process = world.start("run.sh", "--run=r", "--", "sh", "-c", script, start_new_session=True)
    process.communicate(timeout=30)
    for hang_up in (signal.SIGHUP, signal.SIGTERM):
        with pytest.raises(ProcessLookupError):  # the connection's process group has nobody left
            os.killpg(process.pid, hang_up)
    pid = int((world.folders("r")[0] / "pid").read_text())
    os.kill(pid, signal.SIGHUP)
    go.touch()
    assert world.finished("r") == [0, 0]


def test_one_living_worker_keeps_the_whole_slice_from_starting(world):
    world.set_up()
    world.succeed("run.sh", "--run=r", "--", "sh", "-c", "case $HOME in */1) sleep 60 ;; esac")
    world.until([lambda: (world.folders("r")[0] / "exit_code").exists()])
    world.forget()
    code, _, err = world.run("run.sh", "--run=r", "--resume", "--", "true")
    assert code == 1
    assert "run 'r' is alive" in err
    assert (world.folders("r")[0] / "exit_code").exists()
    assert len(world.calls()) == 1
    world.succeed("run.sh", "--run=other", "--", "true")
    assert world.finished("other") == [0, 0]


def test_a_used_name_is_taken_only_to_resume(world):
    world.set_up()
    world.succeed("run.sh", "--run=r", "--", "sh", "-c", "echo once; exit 3")
    assert world.finished("r") == [3, 3]
    code, _, err = world.run("run.sh", "--run=r", "--", "true")
    assert code == 1
    assert "was used before (exit code 3): --resume" in err
    for folder in world.folders("r"):
        (folder / "exit_code").rename(folder / "before")
    world.succeed("run.sh", "--run=r", "--resume")
    assert world.finished("r") == [3, 3]
    assert [(f / "log").read_text().count("once\n") for f in world.folders("r")] == [2, 2]


def test_resume_on_a_new_slice_runs_the_same_command(world):
    world.set_up()
    world.succeed("run.sh", "--run=r", "--", "python", "-m", "program", *WILD)
    world.finished("r")
    world.set_workers(3)
    world.set_up()
    world.succeed("run.sh", "--run=r", "--resume")
    assert world.finished("r") == [0, 0, 0]
    assert [r["argv"] for r in world.records("python")] == [["-m", "program", *WILD]] * 3


def test_a_run_needs_a_command(world):
    assert "no command" in world.fail("run.sh", "--run=r")
    assert "no command of this run is recorded" in world.fail("run.sh", "--run=r", "--resume")
    assert world.records() == []


def test_a_run_before_setup_fails(world):
    code, _, err = world.run("run.sh", "--run=r", "--", "true")
    assert code == 1
    assert "run 'r' was not started" in err


def test_stop_ends_a_run_with_its_children(world):
    world.set_up()
    world.succeed("run.sh", "--run=r", "--", "sh", "-c", "sleep 60 & sleep 60")
    out = world.succeed("run.sh", "--run=r", "--stop")
    assert out.count("exit code 143") == 2
    assert world.finished("r") == [143, 143]
    assert "exit code 143" in world.succeed("run.sh", "--run=r", "--stop")


def test_a_run_that_is_told_as_started_can_be_reached(world):
    """However slow it is to begin: no process but the command is there to take the signal in its place."""
    world.set_up()
    for name in ("setsid", "date"):
        slow = world.fake / "worker_bin" / name
        slow.write_text(f'#!/bin/sh\nsleep 0.5\nexec {world.template}/system_bin/{name} "$@"\n')
        slow.chmod(0o755)
    world.succeed("run.sh", "--run=r", "--", "sleep", "60")
    for folder in world.folders("r"):
        os.killpg(int((folder / "pid").read_text()), signal.SIGTERM)
    assert world.finished("r") == [143, 143]


def test_a_run_whose_leader_dies_at_once_did_not_start(world):
    world.set_up()
    broken = world.fake / "worker_bin/setsid"
    broken.write_text("#!/bin/sh\necho no processes left >&2\nexit 1\n")
    broken.chmod(0o755)
    code, _, err = world.run("run.sh", "--run=r", "--", "true")
    assert code == 1
    assert "run 'r' did not start; see " in err
    assert "no processes left" in (world.folders("r")[0] / "log").read_text()
