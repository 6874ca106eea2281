import shutil
from pathlib import Path

import pytest

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
