"""What pyproject.toml declares: what is imported is a dependency, and what is no code is packed with the package."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DISTRIBUTIONS = {"absl": "absl-py", "orbax": "orbax-checkpoint"}  # where the module has another name
# Beside pyproject.toml: the TPU compiler comes with jax[tpu], tunix has an environment of its own, and the guard of
# executed code is run as a script, beside its own modules.
ELSEWHERE = {"libtpu", "tunix", "kernel", "syscall_filter"}
OPTIONAL = {"bench": {"experiments"}, "lm-eval": {"caspo_jax"}}  # extra -> who may import what it brings


def distribution(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def imported(folder: str) -> set[str]:
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    ours = {"caspo_jax", "experiments"} | ELSEWHERE | set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in found - ours}


@pytest.mark.parametrize("folder", ["caspo_jax", "experiments"])
def test_what_is_imported_is_declared(folder):
    extras = PROJECT["project"]["optional-dependencies"]
    declared = set(map(distribution, PROJECT["project"]["dependencies"]))
    for extra, folders in OPTIONAL.items():
        declared |= set(map(distribution, extras[extra])) if folder in folders else set()
    assert imported(folder) <= declared


def test_what_is_declared_is_imported():
    declared = set(map(distribution, PROJECT["project"]["dependencies"]))
    assert declared <= imported("caspo_jax") | imported("experiments")


def test_every_file_of_the_package_is_packed():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["caspo_jax"]
    package = ROOT / "caspo_jax"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    assert package / "py.typed" in packed
    others = {
        p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc") and p.name[0] != "."
    }
    assert others <= packed
