"""A GPU machine, here or over ssh, and SLURM."""

import json

import pytest

WILD = ["two words", "it's", 'say "no"', "$HOME `id` \\", "line\nbreak", "*", "", "-x", "--"]


def test_a_gpu_machine_over_ssh(world):
    world.set_workers(1)
    world.succeed("gpu_node.sh", "setup", "--host=me@gpu1")
    ((archive, target),) = world.calls("scp")
    assert archive.endswith("/caspo_jax.tar.gz")
    assert target == "me@gpu1:caspo_jax.tar.gz"
    assert ["-m", "pip", "install", "--quiet", "--upgrade", "-e", ".[gpu]"] in world.calls("python")
    world.succeed("gpu_node.sh", "run", "--host=me@gpu1", "--run=r", "--", "python", "-m", "program", *WILD)
    assert world.finished("r") == [0]
    assert json.dumps(["-m", "program", *WILD]) in world.succeed(
        "gpu_node.sh", "logs", "--host=me@gpu1", "--run=r"
    )
    assert "'r': exit code 0" in world.succeed("gpu_node.sh", "status", "--host=me@gpu1")
    assert {call[0] for call in world.calls("ssh")} == {"me@gpu1"}
    assert {len(call) for call in world.calls("ssh")} == {2}
    assert world.calls() == []


def test_this_machine_needs_no_connection(world):
    here = {"PATH": f"{world.fake}/worker_bin:{world.environment['PATH']}"}
    world.succeed("gpu_node.sh", "setup", environment=here)
    world.succeed("gpu_node.sh", "run", "--run=r", "--", "python", "-m", "program", *WILD, environment=here)
    folder = world.clone / "out/runs/r"
    world.until([lambda: (folder / "exit_code").exists()])
    assert json.dumps(["-m", "program", *WILD]) in world.succeed(
        "gpu_node.sh", "logs", "--run=r", environment=here
    )
    error = world.run("gpu_node.sh", "run", "--run=r", "--", "true", environment=here)[2]
    assert "was used before (exit code 0)" in error
    (folder / "exit_code").unlink()
    world.succeed("gpu_node.sh", "run", "--run=r", "--resume", environment=here)
    world.until([lambda: (folder / "exit_code").exists()])
    assert (folder / "log").read_text().count(json.dumps(["-m", "program", *WILD])) == 2
    assert not world.calls("ssh")
    assert world.git("status", "--porcelain") == ""


def test_a_run_on_a_gpu_machine_can_be_stopped(world):
    world.set_workers(1)
    world.succeed("gpu_node.sh", "setup", "--host=gpu1")
    world.succeed("gpu_node.sh", "run", "--host=gpu1", "--run=r", "--", "sleep", "60")
    assert "exit code 143" in world.succeed("gpu_node.sh", "stop", "--host=gpu1", "--run=r")


def test_gpu_node_refuses_what_it_cannot_do(world):
    assert "no task" in world.fail("gpu_node.sh", "--host=gpu1")
    assert "not a host" in world.fail("gpu_node.sh", "setup", "--host=-oProxyCommand=x")
    assert "--run is missing" in world.fail("gpu_node.sh", "run", "--", "true")
    assert "no command" in world.fail("gpu_node.sh", "run", "--run=r")
    world.answer("scp", code=1, stderr="no route\n")
    assert "copying to gpu1 failed" in world.fail("gpu_node.sh", "setup", "--host=gpu1")


JOB = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "8",
}


@pytest.fixture
def installed(world):
    (world.clone / ".venv/bin").mkdir(parents=True)
    python = world.clone / ".venv/bin/python"
    python.write_text("")
    python.chmod(0o755)
    return world


def test_slurm_starts_one_task_a_node_that_sees_all_gpus(installed):
    environment = JOB | {"SLURM_SUBMIT_DIR": str(installed.clone)}
    installed.succeed("slurm.sbatch", "python", "-m", "program", *WILD, environment=environment, cwd="/")
    (call,) = installed.records("srun")
    assert call["argv"] == [
        *["--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--label", "--cpus-per-task=8"],
        *["python", "-m", "program", *WILD],
    ]
    assert call["cwd"] == str(installed.clone)
    assert call["environment"] == {
        "JAX_LOCAL_DEVICE_IDS": "0,1,2,3",
        "VIRTUAL_ENV": str(installed.clone / ".venv"),
    }


def test_slurm_without_gpus_leaves_the_devices_to_jax(installed):
    environment = {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(installed.clone)}
    installed.succeed("slurm.sbatch", "true", environment=environment)
    (call,) = installed.records("srun")
    assert call["argv"] == ["--nodes=1", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--label", "true"]
    assert "JAX_LOCAL_DEVICE_IDS" not in call["environment"]


def test_slurm_passes_the_exit_code_on(installed):
    installed.answer("srun", code=9)
    environment = JOB | {"SLURM_SUBMIT_DIR": str(installed.clone)}
    assert installed.run("slurm.sbatch", "true", environment=environment)[0] == 9


def test_slurm_says_what_is_missing(world):
    environment = JOB | {"SLURM_SUBMIT_DIR": str(world.clone)}
    assert "no command" in world.fail("slurm.sbatch", environment=environment)
    assert "submit this file with sbatch" in world.fail("slurm.sbatch", "true")
    assert "gpu_node.sh setup" in world.fail("slurm.sbatch", "true", environment=environment)
    (world.fake / "bin/srun").unlink()
    assert "srun is not on PATH" in world.fail("slurm.sbatch", "true", environment=environment)
    assert world.records() == []
