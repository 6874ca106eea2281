"""How much does CASPO depend on its judge? Trains once for each share of flipped verdicts, and compares the policies.

    python -m experiments.noise_sweep --task=graph --out_dir=DIR --noise=0,0.05,0.1,0.2,0.4

Trains on an embedded task, whose checker is exact, so that the rate of wrong verdicts is known, with the quickstart's
settings. Each level has its rounds in DIR/noise_RATE; the first round's traces, drawn from the base, are the same for all.
The final policies are compared with the base on held-out questions with exact verdicts; beside them stands the noisy
judge's F1 at finding the first wrong step, as `experiments.verifier_f1` measures it for a judge of one's own. Writes
DIR/noise.{md,csv,json} and DIR/noise.png. Killed at any moment, it goes on when it is started again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation import plots, sample_tables
from caspo_jax.evaluation.formats import markdown, write_table
from caspo_jax.evaluation.tables import ON_ONE_SCALE, Tables, intervals, paired, values
from caspo_jax.evaluation.verifier_f1 import first_error
from caspo_jax.metrics import processbench_f1
from caspo_jax.outputs import ROWS, Manifest, check_own, manifest_path
from caspo_jax.records import trace_from_record
from caspo_jax.steps import NoisyVerifier, verify_traces
from caspo_jax.store import load_records, replacing
from caspo_jax.tasks import get_task
from caspo_jax.tasks.registry import Task
from caspo_jax.training.rounds import Recipe, run_rounds
from caspo_jax.training.stages import Policy
from experiments import common, result_files

FLAGS = flags.FLAGS
COLUMNS = {
    "noise": "noise",
    "judge_f1": "judge F1",
    "metric": "metric",
    "value": "value",
    "low": "low",
    "high": "high",
    "minus_base": "minus base",
    "minus_base_low": "low ",
    "minus_base_high": "high ",
}


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("task", "graph", "embedded task: graph or chain")
    flags.DEFINE_string("out_dir", None, "where everything goes", required=True)
    flags.DEFINE_list(
        "noise", ["0", "0.05", "0.1", "0.2", "0.4"], "shares of flipped verdicts, comma-separated"
    )
    flags.DEFINE_integer("rounds", 1, "rounds of CASPO at each level", lower_bound=1)
    flags.DEFINE_enum(
        "preset", "caspo", ["caspo", "paper", "sft", "rft"], "training recipe, the quickstart's"
    )
    flags.DEFINE_integer("train_questions", 200, "questions of a round", lower_bound=8)
    flags.DEFINE_integer("eval_questions", 200, "held-out questions", lower_bound=8)
    flags.DEFINE_enum("split", "test", ["test", "tune"], "split of the held-out questions")
    common.define_seed_flag("seed of questions, sampling, training and flips")
    flags.DEFINE_integer("batch_size", 2048, "rows decoded together", lower_bound=1)
    flags.DEFINE_bool(
        "overwrite",
        False,
        "replace what was begun in DIR with other settings, or what this program did not write there",
    )
    common.define_terminal_flags()


def main() -> None:
    """Run the sweep."""
    try:
        levels = sorted({float(level) for level in FLAGS.noise})
    except ValueError as error:
        raise UserError(f"--noise={','.join(FLAGS.noise)}: give shares between 0 and 1") from error
    if not levels or not all(0.0 <= level <= 1.0 for level in levels):
        raise UserError(f"--noise={','.join(FLAGS.noise)}: give shares between 0 and 1")
    task, out = get_task(FLAGS.task), Path(FLAGS.out_dir)
    names = ("task", "rounds", "preset", "train_questions", "eval_questions", "split", "seed", "batch_size")
    files = [out / f"noise.{kind}" for kind in ("md", "csv", "json", "png")]
    result_files.check_files(files, out / "manifest.json")
    manifest = Manifest.open(
        out / "manifest.json",
        program="noise_sweep",
        config={name: getattr(FLAGS, name) for name in names} | {"noise": levels},
        free=ROWS,
        overwrite=FLAGS.overwrite,
    )
    folders = {level: out / f"noise_{level:g}" for level in levels}
    policies = {level: train(task, level, folder, folders[levels[0]]) for level, folder in folders.items()}
    with common.Progress(len(levels) + 1, "measure", unit="policy") as progress:
        base = measure(task, task.policy_path)
        progress.update()
        rows: list[dict[str, Any]] = []
        for level, path in policies.items():
            rows += compared(measure(task, path), base, level, judge_f1(task, folders[level]))
            progress.update()
    write_table(out / "noise", rows, COLUMNS, base=base_values(base))
    plots.plot_noise(rows, base_values(base), out / "noise.png")
    common.say(markdown(rows, COLUMNS))
    if not manifest.complete:
        manifest.finish(levels=len(levels))
    common.closing(f"noise.md and noise.png in {out}", {"levels": len(levels), "rounds": FLAGS.rounds})


def train(task: Task, level: float, folder: Path, first: Path) -> Path:
    """The last policy of rounds whose verifier flips this share of its verdicts; `first` holds those of another level."""
    from experiments.configs import quickstart as settings

    share_traces(first / "round_1", folder / "round_1", FLAGS.overwrite)
    exact = task.verifier()
    verifier = NoisyVerifier(exact, level, FLAGS.seed) if level else exact
    recipe = Recipe(
        sample=settings.ROUND_SAMPLE,
        pairs=settings.PAIRS[FLAGS.preset],
        train=settings.TRAIN[FLAGS.preset],
        batch_size=FLAGS.batch_size,
    )
    return run_rounds(
        task.policy_path,
        lambda k: task.questions("train", FLAGS.train_questions, seed=1000 * FLAGS.seed + k),
        folder,
        recipe,
        verifier=lambda _: verifier,
        extract=common.task_answer,
        equal=common.same_text,
        rounds=FLAGS.rounds,
        seed=FLAGS.seed,
        overwrite=FLAGS.overwrite,
        watch=common.watch(f"noise {level:g}"),
    )[-1]


def share_traces(source: Path, target: Path, overwrite: bool) -> None:
    """Copy a round's finished traces where there are none yet: no judge was asked before they were drawn.

    The manifest goes with them, so that a round begun with other settings is refused as ever.

    Args:
      source: folder of the round that drew them.
      target: folder of the round that they are for; the same one has them already.
      overwrite: replace traces that no manifest knows.

    Raises:
      UserError: such traces are there, and `overwrite` is off.
    """
    drawn, traces = source / "traces.jsonl", target / "traces.jsonl"
    if source == target or not drawn.exists() or manifest_path(traces).exists():
        return
    check_own(traces, overwrite)
    # The manifest gets its name first: after a kill between the two, traces without one would be somebody's own.
    with replacing(traces) as new_traces, replacing(manifest_path(traces)) as new_manifest:
        shutil.copyfile(drawn, new_traces)
        shutil.copyfile(manifest_path(drawn), new_manifest)


def judge_f1(task: Task, folder: Path) -> float:
    """ProcessBench's F1 of the verdicts that the first round was trained on, against exact ones."""
    judged = load_records(folder / "round_1" / "annotated.jsonl", trace_from_record)
    exact = verify_traces(judged, task.verifier())
    found, labels = ([first_error([s.verdict for s in t.steps]) for t in side] for side in (judged, exact))
    return processbench_f1(found, labels).f1


def measure(task: Task, path: Path) -> Tables:
    """Sampled steps and answers of a policy with exact verdicts: the same questions and keys for all."""
    from experiments.configs import quickstart as settings

    policy = Policy.load(path)
    return sample_tables(
        policy.model,
        policy.tokenizer,
        task.questions(FLAGS.split, FLAGS.eval_questions, seed=FLAGS.seed),
        settings.SAMPLE,
        jax.random.key(FLAGS.seed + 7919),
        verifier=task.verifier(),
        extract=common.task_answer,
        equal=common.same_text,
        batch_size=FLAGS.batch_size,
    )


def base_values(base: Tables) -> dict[str, float]:
    """The metrics of the base."""
    return {name: value for name, value in values(base).items() if name in ON_ONE_SCALE}


def compared(tables: Tables, base: Tables, level: float, f1: float) -> list[dict[str, Any]]:
    """A row a metric: value and difference to the base, 95 % intervals by question."""
    own, against = intervals(tables), paired(tables, base)
    return [
        {
            "noise": level,
            "judge_f1": f1,
            "metric": name,
            "value": own[name].value,
            "low": own[name].low,
            "high": own[name].high,
            "minus_base": against[name].value,
            "minus_base_low": against[name].low,
            "minus_base_high": against[name].high,
        }
        for name in ON_ONE_SCALE
    ]


if __name__ == "__main__":
    common.tune_malloc()
    define_flags()
    common.run(main)
