"""A process that has imported everything and forks a training run for each line it reads, so that runs start fast.

It starts no thread and no device itself (it imports no test module: those make arrays), or the forks could hang.
Arguments: a folder of the run, updates. Each line on stdin starts a run; its pid, and later its exit status, are printed.
"""

import collections
import dataclasses
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import caspo_jax.training.loop as loop
from caspo_jax.training import LossConfig, TrainConfig, train
from caspo_jax.training.checkpoints import Checkpoints  # noqa: F401 - imported here, once

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from helpers import Toy, make_data

CONFIG = TrainConfig(
    loss=LossConfig(nll_alpha=1.0, nll_on="verified"),
    learning_rate=1e-2,
    batch_size=4,
    save_every=2,
    min_length=16,
    displacement_margin=100.0,
    tensorboard=False,
)
PAIRS, VERIFIED = make_data(seed=0, pairs=14, verified=6)


def run(folder: Path, updates: int) -> None:
    """One run, or the rest of one; notes which examples each update read."""
    read: collections.deque = collections.deque()

    def make_plan(*args):
        plan = loop_make_plan(*args)
        micro, iterator = plan.micro, plan.iterator

        def noted(pairs, verified):
            read.append([plan.store.pair_ids[i] for i in pairs] + [f"v{i}" for i in verified])
            return micro(pairs, verified)

        def updates():
            read.clear()  # what the reference pass read
            return iterator()

        plan.micro, plan.iterator = noted, updates
        return plan

    def note(record):
        with open(folder / "examples.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps([record["step"], read.popleft()]) + "\n")

    loop_make_plan, loop.make_plan = loop.make_plan, make_plan
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(CONFIG, epochs=updates, max_steps=updates)
    model, _ = train(Toy(), PAIRS, config, verified=VERIFIED, out_dir=folder, callback=note)
    np.savez(folder / "final.npz", *[np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))])


if __name__ == "__main__":
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                run(Path(sys.argv[1]), int(sys.argv[2]))
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
