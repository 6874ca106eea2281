import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from caspo_jax.models import load_pretrained

GOLDEN = Path(__file__).parent.parent / "golden"
CHECKPOINTS = ("qwen3_tied_fp32", "qwen2_untied_bf16_sharded", "llama31_untied_fp32")


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session", params=CHECKPOINTS)
def checkpoint(request) -> Path:
    return GOLDEN / request.param


_LOADED: dict[Path, tuple] = {}


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """(model in float32, tokenizer) of each golden checkpoint, loaded once."""
    if checkpoint not in _LOADED:
        _LOADED[checkpoint] = load_pretrained(checkpoint, dtype="float32")
    return _LOADED[checkpoint]


@pytest.fixture
def copy_of(tmp_path):
    """A writable copy of a golden checkpoint, to break."""

    def copy(name: str) -> Path:
        target = tmp_path / name
        shutil.copytree(GOLDEN / name, target)
        return target

    return copy


def tensors(folder) -> dict[str, np.ndarray]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), "numpy") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].tobytes() == b[name].tobytes()
        for name in a
    )
