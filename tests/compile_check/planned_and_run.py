"""Runs in a process of its own with four CPU devices: is the update that a check plans the one that training compiles?

`python planned_and_run.py MESH FOLDER` begins runs of a saved model, each up to its first program, and prints JSON: of each
run which one that is, whether the two lowered programs are one text, and the bytes that its arguments take on a device,
planned and there.
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
    "weights in micro-batches": TrainConfig.preset("caspo", pack_length=32, pack_rows=1),
    "adapters in micro-batches": TrainConfig.preset("caspo", lora=SOME, pack_length=32, pack_rows=1),
}


ADAM = "Adam state (float32)"


class Stopped(Exception):
    """The first update is due."""


def first_program(model: Any, config: TrainConfig) -> tuple[str, tuple[Any, ...]]:
    """The program that a run calls first in its first update, by name, and what it is given."""
    programs = {name: getattr(train_step, name) for name in ("fused_update", "add_gradients")}
    calls: list[tuple[str, tuple[Any, ...]]] = []

    def noting(name: str) -> Any:
        def called(*arguments: Any) -> None:
            calls.append((name, arguments))
            raise Stopped

        return called

    # More than a micro-batch of a row on each of the devices holds.
    pairs, verified = make_data(1, pairs=21, verified=18)
    for name in programs:
        setattr(train_step, name, noting(name))
    try:
        train(model, pairs, config, verified=verified)
    except Stopped:
        return calls[0]
    finally:
        for name, program in programs.items():
            setattr(train_step, name, program)
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
        called, arguments = first_program(model, config)
        accumulates = called == "add_gradients"
        if accumulates:  # Adam's moments lie beside
            _, params, (beside, _), frozen, batch, _ = arguments
        else:
            _, state, frozen, batch, *_ = arguments
            params, beside = state.params, state.opt_state
        rows, length = batch.token_ids.shape
        shape = TrainShape(rows, length, batch.target.shape[1] / length, accumulates)
        program = train_program(SHAPE, mesh, shape, config, "bfloat16")
        planned = dict(program.arguments)
        waiting = planned.pop(ADAM) if accumulates else 0
        base = [there(frozen)] if config.lora else []
        lowered = getattr(train_step, called).lower(*arguments)
        found[name] = {
            "program": called,
            "same": lowered.as_text() == program.lowered.as_text(),
            "planned": planned,
            "there": [*base, there(params), there(beside), there(batch)],
            "unread": program.unread == waiting,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
