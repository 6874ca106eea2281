"""A package that is not installed is named in one line, and a module of this project that is not there is a fault."""

import sys

import pytest

from experiments import common
from experiments.missing import missing


@pytest.mark.parametrize("name", ["grain", "orbax.checkpoint", "datasets"])
def test_a_missing_package_is_one_line(monkeypatch, capsys, name):
    monkeypatch.setattr(common, "keep_programs", lambda: None)
    monkeypatch.setitem(
        sys.modules, name.partition(".")[0], None
    )  # an import then fails as if it were not installed

    def main():
        __import__(name)

    assert common.guarded(main, ["program"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the package {name.partition('.')[0]} is not installed: pip install")


def test_a_missing_module_of_ours_is_a_fault(monkeypatch):
    monkeypatch.setattr(common, "keep_programs", lambda: None)

    def main():
        __import__("caspo_jax.nothing")

    with pytest.raises(ModuleNotFoundError, match="nothing"):
        common.guarded(main, ["program"])


def test_an_import_that_names_nothing_is_a_fault():
    assert missing(ModuleNotFoundError("nothing is said")) is None


def test_flags_of_a_config_without_their_library(monkeypatch, capsys):
    from caspo_jax.preferences import PairConfig
    from experiments import config_flags

    monkeypatch.setitem(sys.modules, "ml_collections", None)
    with pytest.raises(SystemExit) as stopped:
        config_flags.define_config("c", PairConfig(), "a config")
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the package ml_collections is not installed: pip install")
