"""Programs kept on disk."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from caspo_jax import compilation

ROOT = Path(__file__).parent.parent

# Compiles a program, which is kept however short that takes; prints the folder, whether it was found there, its value.
PROGRAM = """
import jax, jax.numpy as jnp
from caspo_jax.compilation import keep_programs
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
folder = keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
value = jax.jit(lambda x: jnp.sort(jnp.sin(x @ x)).sum())(jnp.ones((8, 8)))
print(folder, bool(hits), float(value))
"""


def kept(**environment: str) -> list[str]:
    settled = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    settled |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=settled, capture_output=True, text=True, check=True
    )
    assert not done.stderr, done.stderr
    return done.stdout.split()


def test_the_second_run_finds_what_the_first_compiled(tmp_path):
    folder, hit, value = kept(XDG_CACHE_HOME=str(tmp_path))
    assert Path(folder).parent == tmp_path / "caspo_jax" / "programs"
    assert hit == "False"
    assert list(Path(folder).glob("*-cache"))
    assert kept(XDG_CACHE_HOME=str(tmp_path)) == [folder, "True", value]


@pytest.mark.ci
def test_what_was_damaged_is_compiled_anew(tmp_path):
    folder, _, value = kept(XDG_CACHE_HOME=str(tmp_path))
    for path in Path(folder).glob("*-cache"):
        path.write_bytes(path.read_bytes()[:20])
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    assert kept(**environment) == [folder, "False", value]


def test_jax_s_own_settings_stand(tmp_path):
    mine, home = tmp_path / "mine", str(tmp_path)
    assert kept(XDG_CACHE_HOME=home, JAX_COMPILATION_CACHE_DIR=str(mine))[0] == str(mine)
    assert kept(XDG_CACHE_HOME=home, JAX_ENABLE_COMPILATION_CACHE="false")[:2] == ["None", "False"]


def test_a_folder_that_cannot_be_made_is_gone_without(tmp_path):
    (tmp_path / "caspo_jax").write_text("a file in the way")
    assert kept(XDG_CACHE_HOME=str(tmp_path))[:2] == ["None", "False"]


def test_programs_that_were_long_not_read_are_dropped(tmp_path):
    names = {"old": 61, "fresh": 1}
    for name, days in names.items():
        (tmp_path / name).touch()
        then = time.time() - days * 86400
        os.utime(tmp_path / name, (then, then))
    compilation._drop_old(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["fresh"]


def test_what_cannot_be_dropped_turns_nothing_off(tmp_path, monkeypatch):
    """Another process may drop the same program first, and the folder may hold things of other kinds."""
    then = time.time() - 61 * 86400
    (tmp_path / "folder").mkdir()
    os.utime(tmp_path / "folder", (then, then))
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "old").touch()
    os.utime(tmp_path / "old", (then, then))
    compilation._drop_old(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"folder", "gone"}


def test_a_processor_that_says_nothing_has_a_folder_too(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "")
    assert compilation._processor()


def test_compiled_anew_neither_reads_nor_writes():
    events: list[str] = []
    listen = lambda name, **_: events.append(name.rsplit("/", 1)[-1])  # noqa: E731
    jax.monitoring.register_event_listener(listen)

    def compile_one():
        jax.jit(lambda x: jnp.cumsum(jnp.cos(x)) * 3).lower(jnp.ones(7)).compile()

    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        with compilation.compiled_anew():
            compile_one()
        assert not {"cache_hits", "cache_misses"} & set(events)
        compile_one()  # now it is written, or found
        assert {"cache_hits", "cache_misses"} & set(events)
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
