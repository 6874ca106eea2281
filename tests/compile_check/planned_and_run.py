"""Runs in a process of its own with four CPU devices: is the update that a check plans the one that training compiles?

`python planned_and_run.py MESH FOLDER` begins runs of a saved model, each up to its first update, and prints JSON: of each
run whether the two lowered programs are one text, and the bytes that its arguments take on a device, planned and there.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
from flax import nnx

from caspo_jax.compile_check import TrainShape, train_program
from caspo_jax.models import Decoder, LoraConfig, load_pretrained, save_pretrained
from caspo_jax.sharding import make_mesh
from caspo_jax.training import TrainConfig, train, train_step
from tests.shapes import small_shape
from tests.training.helpers import make_data

# No tensor axis divides its one KV head.
SHAPE = small_shape(qkv_bias=True, output_bias=True, tie_word_embeddings=False)
SOME = LoraConfig(3, alpha=5.0, targets=("q", "down"), rslora=True)
RUNS = {
    "weights": TrainConfig.preset("caspo", remat="full"),
    "weights without masters": TrainConfig.preset("paper", masters="none"),
    "adapters": TrainConfig.preset("caspo", lora=LoraConfig(4)),
    "some adapters without masters": TrainConfig.preset("paper", lora=SOME, masters="none", remat="full"),
}


class Stopped(Exception):
    """The first update is due."""


def first_update(model: Any, config: TrainConfig) -> tuple[Any, ...]:
    """The arguments with which a run calls its first update."""
    update, calls = train_step.fused_update, []

    def called(*arguments: Any) -> None:
        calls.append(arguments)
        raise Stopped

    pairs, verified = make_data(1)
    train_step.fused_update = called
    try:
        train(model, pairs, config, verified=verified)
    except Stopped:
        return calls[0]
    finally:
        train_step.fused_update = update
    raise AssertionError("the run had no update")


def there(tree: Any) -> int:
    """Bytes of a tree's arrays on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def main(spec: str, folder: str) -> None:
    """Compare all runs."""
    save_pretrained(Decoder(SHAPE, rngs=nnx.Rngs(0)), None, folder)
    mesh = make_mesh(spec)
    model, _ = load_pretrained(folder, dtype="bfloat16", mesh=mesh)
    found = {}
    for name, config in RUNS.items():
        arguments = first_update(model, config)
        _, state, frozen, batch, *_ = arguments
        rows, length = batch.token_ids.shape
        program = train_program(SHAPE, mesh, TrainShape(rows, length, 1.0), config, "bfloat16")
        base = [there(frozen)] if config.lora else []
        found[name] = {
            "same": train_step.fused_update.lower(*arguments).as_text() == program.lowered.as_text(),
            "planned": dict(program.arguments),
            "there": [*base, there(state.params), there(state.opt_state), there(batch)],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
