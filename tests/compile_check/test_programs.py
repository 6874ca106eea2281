"""What is planned is what runs."""

import json
from pathlib import Path

import jax
import pytest

from caspo_jax.compile_check import TrainShape, model_shape, train_program
from caspo_jax.errors import UserError
from caspo_jax.models import LoraConfig
from caspo_jax.models.lora import LINEAR
from caspo_jax.models.weights import weights
from caspo_jax.sharding import make_mesh
from caspo_jax.training import TrainConfig
from tests.shapes import parameter_count
from tests.sharding.processes import run

TINY, SHAPE = model_shape("tiny"), TrainShape(rows=2, length=64, step_share=1.0)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param("fsdp:2,tensor:2", marks=pytest.mark.ci),
        pytest.param("data:2,fsdp:2", marks=pytest.mark.slow),
    ],
)
def test_the_planned_update_is_the_one_that_training_compiles(mesh, tmp_path):
    """To the letter, so that no dtype, place or option of a run differs; with weights and with adapters alone trained."""
    script = Path(__file__).parent / "planned_and_run.py"
    runs = json.loads(run(script, mesh, tmp_path / "model", devices=4).splitlines()[-1])
    assert len(runs) == 6
    for name, found in runs.items():
        assert found["program"] == ("add_gradients" if "micro-batches" in name else "fused_update"), name
        assert found["same"], name
        assert found["unread"], name
        assert list(found["planned"].values()) == found["there"], name
        assert ("adapters (float32)" in found["planned"]) == ("adapters" in name)


def test_rows_have_slots_for_the_tokens_that_are_scored():
    """A run's head is given no more of them, in steps of 64."""
    mesh = make_mesh("data:1", jax.devices()[:1])
    whole, part = (
        train_program(TINY, mesh, TrainShape(2, 256, share), TrainConfig(), "bfloat16").arguments["batch"]
        for share in (1.0, 0.3)
    )
    assert whole - part == 2 * (256 - 128) * (4 + 4 + 1)  # two rows' targets, predictors and masks


@pytest.mark.parametrize("dtype, width", [("bfloat16", 2), ("float32", 4)])
def test_adam_keeps_moments_of_the_adapters_alone(dtype, width):
    """Beside weights that stay as they are, of the dtype that is computed in."""
    rank, mesh = 4, make_mesh("data:1", jax.devices()[:1])
    settings = TrainConfig.preset("caspo", lora=LoraConfig(rank))
    held = train_program(TINY, mesh, SHAPE, settings, dtype).arguments
    maps = [weight.shape for weight in weights(TINY) if weight.name in LINEAR.values()]
    adapters = TINY.num_layers * rank * sum(into + out for into, out in maps)
    assert held[f"base weights ({dtype})"] == width * parameter_count(TINY)
    assert held["adapters (float32)"] == 4 * adapters
    assert 8 * adapters <= held["Adam state (float32)"] <= 8 * adapters + 8  # and a count


def test_a_rank_above_a_map_s_side_is_refused():
    mesh = make_mesh("data:1", jax.devices()[:1])
    with pytest.raises(UserError, match=r"rank=257 .*q_proj \[256, 256\]"):
        train_program(TINY, mesh, SHAPE, TrainConfig(lora=LoraConfig(257)), "bfloat16")
