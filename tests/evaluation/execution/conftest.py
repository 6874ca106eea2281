"""The sandbox in both of its modes."""

import pytest

from caspo_jax.evaluation.execution import open_sandbox
from tests.evaluation.execution.programs import SHORT


@pytest.fixture(scope="module", params=["namespaces", "filter"])
def sandbox(request):
    opened = open_sandbox(allow_code_execution=True, limits=SHORT, namespaces=request.param == "namespaces")
    found = opened.run("pass").isolation
    if request.param == "namespaces" and "namespaces" not in found:
        pytest.skip("this machine grants no namespaces")
    if request.param == "filter" and "seccomp" not in found:
        pytest.skip("no system-call filter for this machine")
    return opened
