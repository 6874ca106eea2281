"""CASPO from end to end on the tiny policy that is shipped: sample, annotate, pair, train, compare. Minutes on a CPU, no network.

    python -m experiments.quickstart --out_dir=DIR
    python -m experiments.quickstart --out_dir=DIR --controls        # also fine-tuning and temperature controls
    python -m experiments.quickstart --out_dir=DIR --preset=paper    # plain DPO, the published recipe

Writes DIR/round_k/policy (Hugging Face layout), DIR/report.html, DIR/summary.json and plots; run again, it goes on
where it stopped, also with more --rounds or with --controls. With other settings it stops; with --overwrite too it keeps the
rounds whose own settings are the same.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.distributed import from_writer
from caspo_jax.store import hash_path
from caspo_jax.tasks import Task, get_task
from caspo_jax.training.rounds import Recipe, run_rounds
from experiments import common, result_files

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("out_dir", None, "where everything goes", required=True)
    common.define_seed_flag("seed of questions, sampling, the choice of pairs and training")
    flags.DEFINE_integer("rounds", 2, "rounds of CASPO", lower_bound=1)
    flags.DEFINE_enum(
        "preset", "caspo", ["caspo", "paper"], "caspo: what measures best; paper: plain DPO as published"
    )
    flags.DEFINE_bool(
        "controls", False, "also train sft and rft, and sample the base at the matched temperature"
    )
    flags.DEFINE_string("task", "graph", "embedded task: graph or chain")
    flags.DEFINE_integer("train_questions", 320, "questions of a round", lower_bound=8)
    flags.DEFINE_integer("eval_questions", 1000, "held-out questions of the comparison", lower_bound=8)
    flags.DEFINE_enum(
        "split", "test", ["test", "tune"], "split of the comparison: test, or tune for choosing settings"
    )
    flags.DEFINE_integer("batch_size", 2048, "rows decoded together", lower_bound=1)
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "compute dtype; default: the shipped policy's, float32"
    )
    flags.DEFINE_string("mesh", None, "device mesh such as data:4; default: one device")
    flags.DEFINE_string(
        "confidence", None, "CaT's step confidence (entropy is the paper's); default: what measures best"
    )
    flags.DEFINE_string(
        "prune", None, "CaT's pruning rule (path is the paper's); default: what measures best"
    )
    flags.DEFINE_bool(
        "overwrite",
        False,
        "replace what was begun in DIR with other settings, or what this program did not write there",
    )
    common.define_terminal_flags()


def main() -> None:
    """Run the quickstart."""
    started = time.monotonic()
    from experiments import quickstart_report
    from experiments.configs import quickstart as settings
    from experiments.quickstart_samples import write_quickstart_report

    task = get_task(FLAGS.task)
    strategies = quickstart_report.strategies(settings)  # a wrong name is found out now, not after the rounds
    out = Path(FLAGS.out_dir)
    quickstart_report.check_places(out)
    begun = out / "round_1" / "traces.jsonl.manifest.json"
    with result_files.claimed_folder(out, "quickstart", asked(task), begun) as finish:
        final = trained(task, out, settings)
        quickstart_report.compare(task, final, out, settings, strategies, started)
        finish(rounds=FLAGS.rounds, controls=FLAGS.controls)
    report = write_quickstart_report(out, task.policy_path, final[FLAGS.preset], FLAGS.dtype)
    common.say(f"report in {report}")


def trained(task: Task, out: Path, settings: Any) -> dict[str, list[Path]]:
    """The policies of round 1, 2, ... by --preset and, with --controls, by `sft` and `rft`."""
    runs = [FLAGS.preset, *(("sft", "rft") if FLAGS.controls else ())]
    final: dict[str, list[Path]] = {}
    for name in runs:
        folder = out if name == FLAGS.preset else out / "controls" / name
        recipe = Recipe(
            sample=settings.ROUND_SAMPLE,
            pairs=settings.PAIRS[name],
            train=settings.TRAIN[name],
            batch_size=FLAGS.batch_size,
            dtype=FLAGS.dtype,
            mesh=common.mesh(),
        )
        final[name] = run_rounds(
            task.policy_path,
            lambda k: task.questions("train", FLAGS.train_questions, seed=1000 * FLAGS.seed + k),
            folder,
            recipe,
            verifier=lambda _: task.verifier(),
            extract=common.task_answer,
            equal=common.same_text,
            rounds=FLAGS.rounds,
            seed=FLAGS.seed,
            overwrite=FLAGS.overwrite,
            watch=common.watch(name),
        )
    return final


def asked(task: Task) -> dict[str, Any]:
    """What shapes rounds and comparison, for the folder's manifest; more rounds, and controls, may come to them."""
    names = ["task", "preset", "seed", "train_questions", "eval_questions", "split"]
    names += ["batch_size", "dtype", "confidence", "prune"]
    values = {name: FLAGS[name].value for name in names}
    return values | {"policy": from_writer("policy", lambda: hash_path(task.policy_path))}


if __name__ == "__main__":
    common.tune_malloc()
    define_flags()
    common.run(main)
