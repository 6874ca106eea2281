"""The life of a slice: created, set up, used, deleted."""

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

WHERE = ["--project=proj", "--zone=zone-b"]
WILD = ["two words", "it's", 'say "no"', "$HOME `id` \\", "line\nbreak", "*", "", "-x", "Grüße; rm -rf /"]


def verbs(calls: list[list[str]]) -> list[str]:
    return [call[3] for call in calls]


# --- create


def test_create_requests_what_is_set_and_waits_through_the_queue(world):
    world.states("ABSENT", "", "WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE")
    out = world.succeed("create.sh", "--poll_s=0", "--spot", "--", "--network=my net")
    calls = world.calls()
    assert verbs(calls) == ["describe", "create", *["describe"] * 5]
    assert calls[1] == [
        *["compute", "tpus", "queued-resources", "create", "slice", "--node-id=slice", *WHERE],
        *["--accelerator-type=v6e-8", "--runtime-version=runtime", "--spot", "--network=my net"],
    ]
    shown = [line.split()[1] for line in out.splitlines() if line.startswith("state ")]
    assert shown == ["not", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


@pytest.mark.parametrize("state", ["ACTIVE", "WAITING_FOR_RESOURCES"])
def test_create_takes_what_exists(world, state):
    world.states(f"{state},v6e-8", "ACTIVE")
    out = world.succeed("create.sh", "--poll_s=0")
    assert f"exists already, state {state}" in out
    assert "create" not in verbs(world.calls())


def test_create_refuses_another_type_of_the_same_name(world):
    world.states("ACTIVE,v6e-64")
    assert "v6e-64, not --accelerator_type=v6e-8" in world.fail("create.sh")


def test_create_reports_why_a_request_failed(world):
    world.answer("--format=value(state.failedData.error.message)", "no quota, ask for more")
    world.states("ABSENT", "FAILED")
    error = world.fail("create.sh", "--poll_s=0")
    assert "FAILED: no quota, ask for more" in error
    assert "teardown.sh" in error


@pytest.mark.parametrize("state", ["SUSPENDED", "SUSPENDING", "DELETING"])
def test_create_does_not_wait_for_what_cannot_come(world, state):
    world.states(f"{state},v6e-8", state)
    assert f"is {state}" in world.fail("create.sh", "--poll_s=0")


def test_create_gives_up_waiting_when_the_time_is_over(world):
    world.states("ABSENT", "WAITING_FOR_RESOURCES")
    error = world.fail("create.sh", "--poll_s=1", "--timeout_s=1")
    assert "still WAITING_FOR_RESOURCES after 1 s (--timeout_s) and stays in the queue" in error


def test_create_without_waiting_looks_once(world):
    world.states("ABSENT")
    world.succeed("create.sh", "--timeout_s=0")
    assert verbs(world.calls()) == ["describe", "create"]


def test_create_passes_on_what_gcloud_says(world):
    world.answer("create", code=1, stderr="ERROR: quota\n")
    world.states("ABSENT")
    _, _, err = world.run("create.sh")
    assert "ERROR: quota" in err
    assert "gcloud refused to create queued resource 'slice'" in err


@pytest.mark.parametrize("script", ["create.sh", "teardown.sh", "status.sh"])
def test_a_look_up_that_fails_is_not_taken_for_absence(world, script):
    world.answer("describe", code=1, stderr="noise\nERROR: PERMISSION_DENIED: not yours\n")
    assert "cannot look up queued resource 'slice': ERROR: PERMISSION_DENIED" in world.fail(script)
    assert verbs(world.calls()) == ["describe"]


# --- setup


def test_setup_ships_the_tracked_files_as_they_are_now(world):
    (world.clone / "pyproject.toml").write_text("# edited\n")
    (world.clone / "secret.txt").write_text("not tracked")
    world.succeed("setup.sh")
    for home in world.workers:
        copy = home / "caspo_jax"
        assert (copy / "pyproject.toml").read_text() == "# edited\n"
        assert not (copy / "secret.txt").exists()
        assert not (home / "caspo_jax.tar.gz").exists()
        assert (copy / ".venv/revision").read_text().strip() == world.git(
            "rev-parse", "--short", "HEAD"
        ) + "-edited"
    assert world.git("status", "--porcelain").splitlines() == ["M pyproject.toml", "?? secret.txt"]


def test_setup_installs_the_tpu_extra_on_every_worker(world):
    world.succeed("setup.sh")
    assert [c[3:5] for c in world.calls()] == [["scp", world.calls()[0][4]], ["ssh", "slice"]]
    assert all(c[-1 if c[3] == "scp" else -2] == "--worker=all" for c in world.calls())
    for home in world.workers:
        mine = [r["argv"] for r in world.records("python") if r["cwd"] == str(home / "caspo_jax")]
        assert ["-m", "pip", "install", "--quiet", "--upgrade", "-e", ".[tpu]"] in mine
        assert len([r for r in world.records("python3.13") if r["argv"][:2] == ["-m", "venv"]]) == 2


def test_a_second_setup_upgrades_in_place(world):
    world.set_up()
    keep = world.workers[0] / "caspo_jax/out/kept.txt"
    keep.parent.mkdir()
    keep.write_text("result")
    (world.clone / "old name.py").unlink()
    (world.clone / "new.py").write_text("new = 1\n")
    world.commit()
    world.succeed("setup.sh")
    assert not world.records("python3.13")
    assert world.records("python")
    assert keep.read_text() == "result"
    assert (world.workers[1] / "caspo_jax/new.py").exists()
    assert not (world.workers[1] / "caspo_jax/old name.py").exists()


def test_setup_brings_python_along_where_it_is_too_old(world):
    (world.fake / "worker_bin/python3.13").unlink()
    world.install("python3", "worker_bin")
    world.answer("python3 -c", code=1)
    world.succeed("setup.sh")
    made = [r["argv"] for r in world.records("python3") if r["argv"][0] == "-m"]
    assert made.count(["-m", "uv", "venv", "--quiet", "--seed", "--python=3.12", ".venv"]) == 2


def test_setup_fails_when_a_worker_fails(world):
    world.answer("python -m pip -e .[tpu]", "", code=1, stderr="no network\n")
    code, out, err = world.run("setup.sh")
    assert code == 1
    assert "pip could not install .[tpu]" in err
    assert "set-up failed on a worker of 'slice'" in err
    assert "is set up; next" not in out


def test_setup_leaves_living_runs_alone(world):
    world.set_up()
    world.succeed("run.sh", "--run=long", "--", "sleep", "60")
    (world.clone / "pyproject.toml").write_text("# edited\n")
    code, _, err = world.run("setup.sh")
    assert code == 1
    assert "run 'long' is alive" in err
    assert (world.workers[0] / "caspo_jax/pyproject.toml").read_text() == "# a package\n"


def test_setup_outside_a_clone_says_so(world):
    (world.clone / ".git").rename(world.root / "elsewhere")
    assert "is not a git clone" in world.fail(
        "setup.sh", environment={"GIT_CEILING_DIRECTORIES": str(world.root)}
    )
    assert world.records() == []


# --- run


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


# --- logs and status


def test_logs_of_all_workers_are_told_apart_and_end_with_the_run(world):
    world.set_up()
    world.succeed(
        "run.sh", "--run=r", "--", "sh", "-c", 'sleep 0.5; echo "from $HOME"; printf "no end of line"'
    )
    out = world.succeed("logs.sh", "--run=r")
    for number, home in enumerate(world.workers):
        mine = [line for line in out.splitlines() if line.startswith(f"[worker {number}] ")]
        assert f"[worker {number}] from {home}" in mine
        assert mine[-1].endswith("exit code 0")
    assert all(line.startswith("[worker ") for line in out.splitlines())


def test_logs_of_one_worker_ask_only_that_one(world):
    world.set_up()
    world.succeed("run.sh", "--run=r", "--", "sh", "-c", "seq 100")
    world.finished("r")
    world.forget()
    out = world.succeed("logs.sh", "--run=r", "--worker=1", "--lines=3", "--nofollow")
    assert out.splitlines()[:2] == ["[worker 1] 99", "[worker 1] 100"]
    assert len(out.splitlines()) == 3
    assert [c[3] for c in world.calls()] == ["ssh"]
    assert "--worker=1" in world.calls()[0]


def test_an_interrupt_ends_the_watching_and_not_the_run(world):
    world.set_up()
    world.succeed("run.sh", "--run=r", "--", "sh", "-c", "echo up; sleep 60")
    process = world.start("logs.sh", "--run=r")
    assert process.stdout is not None
    seen = {process.stdout.readline() for _ in range(4)}
    assert {"[worker 0] up\n", "[worker 1] up\n"} <= seen
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)  # returns only when no child holds the pipe any more
    assert process.returncode == 130
    assert world.succeed("status.sh", "--run=r").count("'r': alive") == 0  # not ACTIVE: nobody is asked
    world.states("ACTIVE")
    assert world.succeed("status.sh", "--run=r").count("'r': alive") == 2


def test_logs_of_a_run_that_is_not_there(world):
    world.set_up()
    code, out, err = world.run("logs.sh", "--run=nothing")
    assert code == 1
    assert out.count("there is no run 'nothing'") == 2
    assert "could not be read from every worker" in err


def test_status_tells_how_runs_ended(world):
    world.set_up()
    world.states("ACTIVE")
    for name, command in {"good": "exit 0", "bad": "exit 9", "killed": "sleep 60"}.items():
        world.succeed("run.sh", f"--run={name}", "--", "sh", "-c", command)
    world.finished("good")
    world.finished("bad")
    for folder in world.folders("killed"):
        os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
    out = world.succeed("status.sh")
    assert "queued resource 'slice': ACTIVE" in out
    for told in ("'good': exit code 0", "'bad': exit code 9", "'killed': died without an exit code"):
        assert out.count(told) == 2


def test_status_of_nothing(world):
    world.states("ABSENT")
    assert "ABSENT" in world.succeed("status.sh")
    assert verbs(world.calls()) == ["describe"]


# --- teardown

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
    assert verbs(world.calls()) == ["describe"]


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
    assert verbs(world.calls()) == ["describe"]


def test_teardown_of_nothing_is_no_error(world):
    world.states("ABSENT")
    assert "nothing to delete" in world.succeed("teardown.sh", "--yes")
    assert verbs(world.calls()) == ["describe"]


def test_teardown_reports_a_refused_deletion(world):
    world.answer("delete", code=1, stderr="ERROR: locked\n")
    world.states("ACTIVE,v6e-8")
    code, out, err = world.run("teardown.sh", "--yes")
    assert code == 1
    assert "ERROR: locked" in err
    assert "is deleted" not in out
