"""What stands beside the right argument is refused by name: a config of another function, one for a list, a name."""

import jax
import pytest
from flax import nnx

import caspo_jax as cj
from caspo_jax.checks import of_kind
from caspo_jax.errors import UserError
from caspo_jax.models import Decoder
from caspo_jax.preferences import PairConfig, pack_pairs, select_pairs
from caspo_jax.steps import StatedEquations, annotate_traces
from caspo_jax.training import reference_logprobs
from caspo_jax.types import Pair, Trace
from tests.shapes import small_shape

PAIR = Pair("a", "wrong", "", "", "", "", (1, 2), (), (3,), (4,), (False, False))
TRACE = Trace("t", "?", None, None, (1,), tuple(b"1 + 1 = 2"), "1 + 1 = 2", "eos")
BYTES = [bytes([b]) for b in range(256)]


@pytest.fixture(scope="module")
def model():
    return Decoder(small_shape(), rngs=nnx.Rngs(0))


def test_both_types_are_named():
    of_kind(3, (int, str), "f", "x")
    with pytest.raises(UserError, match=r"^f takes a int or str as x, not a list; try g$"):
        of_kind([], (int, str), "f", "x", "try g")


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda model, batch: cj.step_dpo_loss(model, [batch]), "takes a PairBatch or TreeBatch as batch, not a list"),
        (lambda model, batch: cj.step_dpo_loss(model, batch, {}), "takes a LossConfig as config, not a dict"),
        (lambda model, batch: cj.train(model, [PAIR], cj.LossConfig()), "takes a TrainConfig as config"),
        (lambda model, batch: cj.train(model, "p.jsonl", cj.TrainConfig()), r"as data\[0\], not a str; read_trl"),
        (lambda model, batch: reference_logprobs(model, batch), "takes a list of batches, not one"),
        (lambda model, batch: select_pairs(([], {}), PairConfig(kinds=("wrong",))), "counts = build_candidates"),
    ],
)  # fmt: skip
def test_training_and_pairs(model, call, match):
    with pytest.raises(UserError, match=match):
        call(model, pack_pairs([PAIR], 8, 0))


def test_a_search_wants_a_model():
    key = jax.random.key(0)
    for given in (print, (1, 2), None):
        with pytest.raises(UserError, match=r"generate takes a Decoder as model, not a \w+; load_pretrained"):
            cj.generate(given, None, ["?"], cj.SampleConfig(), key)
        with pytest.raises(UserError, match="cat_search takes a Decoder as model"):
            cj.cat_search(given, None, ["?"], cj.CatConfig(), key)


class Silent:
    name = "silent"

    def verify(self, items):
        return None


class Nameless:
    def verify(self, items):
        return ["unknown" for _ in items]


@pytest.mark.parametrize(
    "verifier, match",
    [
        ("exact", "verifier is 'exact': give an object with a `name` and a method `verify`"),
        (StatedEquations, "verifier is the class StatedEquations: give an object"),
        (Nameless(), "give an object with a `name`"),
        (Silent(), "verifier 'silent' gave None for 1 steps"),
    ],
)
def test_what_is_no_verifier_is_refused(verifier, match):
    with pytest.raises(UserError, match=match):
        annotate_traces([TRACE], BYTES, verifier=verifier)
