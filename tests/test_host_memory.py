"""Free memory against what the machine and a container say."""

import psutil
import pytest

from caspo_jax.host_memory import free_memory


@pytest.mark.parametrize(
    "limit, used, files, want",
    [
        (5000, 2000, ("memory.max", "memory.current"), 3000),
        (5000, 6000, ("memory.max", "memory.current"), 0),
        (7000, 1000, ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"), 6000),
    ],
)
def test_a_container_limits_the_memory(limit, used, files, want, tmp_path):
    (tmp_path / "memory").mkdir()
    for name, value in zip(files, (limit, used), strict=True):
        (tmp_path / name).write_text(f"{value}\n")
    assert free_memory(tmp_path) == want


def test_without_a_limit_it_is_the_machines(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("17\n")
    before = psutil.virtual_memory().available
    for place in (tmp_path, tmp_path / "missing"):
        assert 0.5 * before < free_memory(place) < 2 * before
