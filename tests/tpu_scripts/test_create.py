"""create.sh: a slice is asked for once, and waited for through the queue."""

import pytest

from tests.tpu_scripts.conftest import WHERE


def test_create_requests_what_is_set_and_waits_through_the_queue(world):
    world.states("ABSENT", "", "WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE")
    out = world.succeed("create.sh", "--poll_s=0", "--spot", "--", "--network=my net")
    calls = world.calls()
    assert world.verbs() == ["describe", "create", *["describe"] * 5]
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
    assert "create" not in world.verbs()


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
    assert world.verbs() == ["describe", "create"]


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
    assert world.verbs() == ["describe"]
