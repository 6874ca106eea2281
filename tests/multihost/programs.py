"""One process of two that runs the programs one after another: `python programs.py INDEX PORT FOLDER`.

The second process prints, as JSON in a last line, the names of whatever it writes there itself.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
from pathlib import Path

from absl import flags

from caspo_jax import distributed
from experiments import common

INDEX, PORT, FOLDER = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
WRITES: set[str] = set()
_CHANGES = {"os.rename": (0, 1), "os.mkdir": (0,), "os.remove": (0,), "os.rmdir": (0,), "os.truncate": (0,)}


def watch_writes() -> None:
    """Notes this process's own writes below FOLDER."""

    def note(path: object) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            name = os.path.abspath(os.fsdecode(path))
            # Every process writes its own shards of a checkpoint.
            if name.startswith(str(FOLDER)) and "/checkpoints" not in name:
                WRITES.add(name)

    def hook(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            note(args[0])
        for position in _CHANGES.get(event, ()):
            note(args[position])

    sys.addaudithook(hook)
    # These write from native code, which Python does not see.
    import pyarrow.parquet
    import safetensors.numpy

    import caspo_jax.models.adapter

    def refused(*args: object, **_: object) -> None:
        WRITES.add(f"native: {args[1:2]}")

    pyarrow.parquet.write_table = safetensors.numpy.save_file = refused
    caspo_jax.models.adapter.save_file = refused


def run(name: str, **given: object) -> None:
    """One program with its flags, in this process."""
    before = set(flags.FLAGS)
    argv = [name, *(f"--{key}={value}" for key, value in given.items())]
    sys.argv = argv
    module = importlib.import_module(f"experiments.{name}")
    module.define_flags()
    flags.FLAGS(argv)
    module.main()
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    distributed.barrier(f"{name} is done")


def all_programs() -> None:
    """Every program that a run of several processes may use."""
    from caspo_jax.records import question_to_record
    from caspo_jax.store import write_jsonl
    from caspo_jax.tasks import get_task

    task = get_task("graph")
    questions = list(task.questions("train", 8, seed=3))
    write_jsonl(FOLDER / "questions.jsonl", map(question_to_record, questions))
    hedged = []
    for i, question in enumerate(questions[:4]):
        steps = task.solve(task.parse(question.question), random.Random(i), dict(task.basics))
        wrong = [*steps[:-1], f"answer: {int(question.gold) + 1}, maybe"]
        for k, text in enumerate(("\n\n".join(steps), "\n\n".join(wrong))):
            hedged.append(question_to_record(question) | {"id": f"{question.id}/{k}", "text": text})
    write_jsonl(FOLDER / "hedged.jsonl", hedged)
    distributed.barrier("inputs are there")
    model = {"model": task.policy_path, "dtype": "float32", "mesh": "data:2,fsdp:2,tensor:2", "quiet": True}
    short = {"max_new_tokens": 96, "batch_size": 32}
    at = {name: FOLDER / f"{name}.jsonl" for name in ("questions", "traces", "scores", "annotated", "pairs")}
    run("generate", **model, **short, input=at["questions"], output=at["traces"], strategy="sample",
        num_samples=4)  # fmt: skip
    run("score", **model, input=at["traces"], output=at["scores"])
    run("annotate", **model, input=at["traces"], output=at["annotated"], dataset_dir=FOLDER / "dataset")
    run("pairs", **model, input=at["annotated"], output=at["pairs"], trl_output=FOLDER / "trl.jsonl",
        max_step_tokens=48)  # fmt: skip
    training = {"pairs_file": at["pairs"], "annotated": at["annotated"], "train.batch_size": 8}
    training |= {"train.max_steps": 2, "train.min_length": 64, "train.tensorboard": False}
    run("train", **model, **training, out_dir=FOLDER / "run", lora_rank=2)
    run("export", **model, run=FOLDER / "run", output=FOLDER / "policy")
    run("export", **model, run=FOLDER / "run", output=FOLDER / "adapter", format="peft")
    run("calibrate", **model, **short, input=at["questions"], output=FOLDER / "calibration.json",
        num_branches=4, splits=10)  # fmt: skip
    run("evaluate", **model, **short, benchmarks="graph", strategies="greedy,sample,cat",
        out_dir=FOLDER / "evaluated", limit=4, group=4, num_samples=4, cat_sizes=2, tune=0)  # fmt: skip
    run("faithfulness", **model, traces=FOLDER / "hedged.jsonl", out_dir=FOLDER / "faithful", samples=2,
        max_new_tokens=24, draws=20, batch_size=64, probe_l2=10.0)  # fmt: skip


def main() -> None:
    """Joins the other process, runs everything, and says what this one wrote."""
    if INDEX == 1:
        watch_writes()
    distributed.start(f"127.0.0.1:{PORT}", 2, INDEX)
    all_programs()
    if INDEX == 1:
        sys.stdout.write(f"\n{json.dumps(sorted(WRITES))}\n")  # a line of its own: Gloo prints too
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(common.guarded(main, ["programs"]))
