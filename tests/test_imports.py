"""The house of the design: one direction of imports, and a light core."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "caspo_jax"
ORDER = [
    "errors",
    "padding",
    "checks",
    "distributed",
    "types",
    "records",
    "store",
    "locks",
    "folders",
    "outputs",
    "host_memory",
    "sharding",
    "compilation",
    "models",
    "confidence",
    "sampling",
    "steps",
    "preferences",
    "training",
    "compile_check",
    "metrics",
    "evaluation",
    "tasks",
]
# What may be missing: all but jax, flax, optax, numpy, safetensors, transformers and what these import.
OPTIONAL = [
    "datasets",
    "grain",
    "jinja2",
    "math_verify",
    "matplotlib",
    "ml_collections",
    "orbax.checkpoint",
    "pandas",
    "pyarrow",
    "tensorboardX",
    "torch",
]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "caspo_jax":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("caspo_jax.")}
    return rooms


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_above_it(path):
    here = room_of(path)
    assert here in ORDER, f"{here} has no place in the order of rooms"
    for room in imported_rooms(path):
        assert room in ORDER, f"{path} imports caspo_jax.{room}, which has no place in the order"
        assert ORDER.index(room) <= ORDER.index(here), f"{path}: {here} imports from {room}, a room below it"


def test_the_first_names_are_at_the_top():
    import caspo_jax

    assert all(hasattr(caspo_jax, name) for name in caspo_jax.__all__)
    project = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{caspo_jax.__version__}"' in project
    assert not hasattr(caspo_jax, "nothing")


def test_the_core_needs_only_its_own_dependencies():
    program = f"""
import importlib.abc, sys
blocked = {OPTIONAL!r}
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + ".") for b in blocked):
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
import caspo_jax, caspo_jax.models, caspo_jax.confidence, caspo_jax.sampling, caspo_jax.training.losses
assert caspo_jax.dpo_loss is not None and caspo_jax.token_stats is not None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
