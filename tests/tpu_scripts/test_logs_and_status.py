"""logs.sh and status.sh: what runs say, and how they ended."""

import os
import signal


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
    assert world.verbs() == ["describe"]
