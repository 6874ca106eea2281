"""What a decoder takes as tokens, and how it refuses the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.errors import UserError
from caspo_jax.models import Decoder
from tests.shapes import small_shape


@pytest.fixture(scope="module")
def model():
    return Decoder(small_shape(), rngs=nnx.Rngs(0))


def test_lists_and_integers_of_any_width_are_tokens(model):
    want = model(jnp.array([[1, 2, 3]], jnp.int32), mask=jnp.array([[True, True, False]]))
    np.testing.assert_array_equal(model([[1, 2, 3]], mask=[[1, 1, 0]]), want)
    np.testing.assert_array_equal(
        model(np.array([[1, 2, 3]], np.uint8), [[0, 1, 1]], np.array([[1, 1, 0]])), want
    )


@pytest.mark.parametrize(
    "given, words",
    [
        ({"token_ids": [1, 2, 3]}, r"token_ids of shape \(3,\): give rows of tokens, \[B, T\]"),
        ({"token_ids": np.zeros((1, 0), int)}, r"token_ids of shape \(1, 0\)"),
        ({"token_ids": np.zeros((0, 5), int)}, r"token_ids of shape \(0, 5\)"),
        ({"token_ids": [[1.0, 2.0]]}, "token_ids must be integers, not float32"),
        ({"token_ids": [[1, 2]], "mask": [1, 1]}, r"mask of shape \(2,\) does not match .*\(1, 2\)"),
        ({"token_ids": [[1, 2]] * 2, "mask": [[1, 1]]}, r"mask of shape \(1, 2\) does not match .*\(2, 2\)"),
        ({"token_ids": [[1, 2]], "positions": [0, 1]}, r"positions of shape \(2,\)"),
        ({"token_ids": [[1, 2]], "subtree_end": [[2]]}, r"subtree_end of shape \(1, 1\)"),
    ],
)
def test_what_is_no_rows_of_tokens_is_refused(model, given, words):
    read = model.hidden_states if "subtree_end" in given else model
    with pytest.raises(UserError, match=words):
        read(**given)
    given = {name: jnp.asarray(value) for name, value in given.items()}
    with pytest.raises(UserError, match=words):  # in a program too, as it is traced
        jax.eval_shape(lambda given: read(**given), given)
