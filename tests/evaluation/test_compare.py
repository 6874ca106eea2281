import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.evaluation.compare import tempered
from caspo_jax.models import load_pretrained
from caspo_jax.tasks import get_task


@pytest.mark.parametrize("temperature", [0.5, 1.4])
def test_tempered_divides_the_logits_and_leaves_the_model_alone(temperature):
    model, _ = load_pretrained(get_task("graph").policy_path)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 12)))
    before = np.asarray(model(ids))
    other = tempered(model, temperature)
    np.testing.assert_allclose(other(ids), before / temperature, atol=1e-4)
    np.testing.assert_array_equal(model(ids), before)
