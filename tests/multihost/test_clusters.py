"""Whether a process takes itself for one of several, by what the cluster's launcher and the machine say."""

from __future__ import annotations

import jax
import pytest

from caspo_jax.distributed import joining, process_count
from caspo_jax.errors import UserError

LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


@pytest.fixture
def machine(monkeypatch):
    """machine(chips, library, **environment) -> is this process in a cluster?"""

    def look(chips=False, library=True, **environment):
        for name in (*LAUNCHERS, "JAX_PLATFORMS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(
            joining.glob, "glob", lambda pattern: ["/dev/accel0"] if chips and "accel" in pattern else []
        )
        monkeypatch.setattr(joining.importlib.util, "find_spec", lambda name: object() if library else None)
        return joining._in_cluster()

    return look


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("tasks, several", [("2", True), ("1", False), ("", False)])
def test_a_launcher_says_how_many_there_are(machine, name, tasks, several):
    assert machine(JAX_PLATFORMS="cpu", **{name: tasks}) is several


@pytest.mark.parametrize("platforms", [None, "tpu", "tpu,cpu"])
def test_chips_and_their_library_make_a_pod(machine, platforms):
    environment = {} if platforms is None else {"JAX_PLATFORMS": platforms}
    assert machine(chips=True, **environment)
    assert not machine(chips=False, **environment)
    assert not machine(chips=True, library=False, **environment)


@pytest.mark.parametrize("platforms", ["cpu", "cpu,tpu", "cuda", ""])
def test_chips_that_jax_is_not_to_use_make_none(machine, platforms):
    assert not machine(chips=True, JAX_PLATFORMS=platforms)


def test_a_machine_that_only_looks_like_part_of_a_cluster_is_by_itself(monkeypatch):
    def refuses(*given, **more):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(joining, "_in_cluster", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", refuses)
    joining.start()
    assert process_count() == 1
    with pytest.raises(UserError, match=r"--coordinator_address=127\.0\.0\.1:1: .*should be defined"):
        joining.start("127.0.0.1:1", 2, 0)


def test_who_has_joined_does_not_join_again(monkeypatch):
    def never(*given, **more):
        pytest.fail("joined twice")

    monkeypatch.setattr(jax.distributed, "initialize", never)
    monkeypatch.setattr(joining.GROUP, "client", object())
    joining.start("127.0.0.1:1", 2, 0)
