"""Is it better, at equal cost, and by how much? Strategies on benchmarks, with intervals, costs and paired tests.

    python -m experiments.evaluate --model=POLICY --benchmarks=graph --strategies=all --out_dir=DIR
    python -m experiments.evaluate --model=POLICY --base=BASE --benchmarks=graph --out_dir=DIR      # both, and their difference
    python -m experiments.evaluate --model=POLICY --input=questions.jsonl --strategies=greedy,sequence_vote,cat --out_dir=DIR
    python -m experiments.evaluate --compare BASE_DIR POLICY_DIR                    # stored answers, no model
    python -m experiments.evaluate --model=POLICY --traces=annotated.jsonl --out_dir=DIR   # every confidence, no decoding

Strategies: greedy, sample, self_consistency, confidence_vote, sequence_vote, cot_decoding, deepconf, deepconf_online,
self_certainty, kappa, beam, mcts, cat, cat_paper, or all. Temperatures, thresholds and exponents are chosen on --tune
separate questions (the tune split of an embedded task, or --tune_input, which may hold none of those that are reported on);
--tune=0 takes them from the flags.

DIR/answers.jsonl holds one line an answer: what was answered, whether it is right, decoded tokens, forward passes,
seconds, and the path confidence of an answer that comes from one output. Every figure of DIR/table.{md,csv,json} and
DIR/paired.{md,csv,json} can be computed from it; the ten-line script is in experiments/README.md. So can those of
DIR/calibration.{md,csv,json}: are these confidences to be believed? Bias, ECE and Brier score, raw and scaled, and AUROC, with
intervals. DIR/curve.png shows accuracy against tokens; DIR/report.html shows all of it, with the
traces and trees of the first questions (DIR/samples). With --base these are DIR/base and DIR/model, and DIR/compare.{md,csv,json}
holds the policy minus the base, paired by question. Where an interval holds 0, or p is above .05, a table says
`not told apart`, CSV and JSON `equal`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation import curve_plots, two_runs
from caspo_jax.evaluation.answer_records import read_answers
from caspo_jax.evaluation.benchmarks import benchmark_names
from caspo_jax.evaluation.formats import markdown, write_table
from caspo_jax.evaluation.strategies import check_names
from caspo_jax.outputs import ROWS, Manifest
from caspo_jax.training.stages import Policy
from experiments import benchmark_source, common, result_files
from experiments.evaluate_run import Runner
from experiments.evaluate_settings import base_settings, cat_sizes, run_settings, say_untuned

FLAGS = flags.FLAGS
# Of a run's folder, what is written whole, without a manifest of its own.
RESULTS = (
    *(f"{table}.{kind}" for table in ("table", "calibration", "paired") for kind in ("md", "csv", "json")),
    "curve.png",
    "samples",
    "report.html",
)
# Of a row -> in the closing summary: what cannot be told apart is not proved equal.
VERDICTS = {"above": "above", "equal": "not_told_apart", "below": "below"}


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags(required=False)
    common.define_decoding_flags(num_samples=16, temperature=0.7)
    common.define_question_flags()
    common.define_answer_flags()
    common.define_cat_flags()
    FLAGS["max_new_tokens"].help = (
        "most tokens of an output; default: half of what the longest prompt leaves of the context, so that a prefix as long "
        "as an output can be gone on from, and 1024 at most; the first lines of a run say how many"
    )
    flags.DEFINE_string(
        "base",
        None,
        "another policy, such as the one that training started from: evaluated alike and compared",
    )
    flags.DEFINE_list(
        "benchmarks",
        [],
        f"embedded tasks (graph, chain) or benchmarks, comma-separated: {', '.join(benchmark_names())}",
    )
    flags.DEFINE_list("strategies", ["all"], "strategies, comma-separated")
    flags.DEFINE_string("input", None, "JSONL of questions with gold answers, as a benchmark of one's own")
    flags.DEFINE_string("out_dir", None, "where everything goes")
    flags.DEFINE_integer("limit", 200, "questions a benchmark; 0 takes all", lower_bound=0)
    flags.DEFINE_integer(
        "group",
        None,
        "most questions decoded together; a killed run loses one group. Default: 256, fewer where their samples may have more "
        "than 8 million tokens. 100 questions or more are cut into two groups at least: the first one's time is mostly "
        "compilation",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "tune",
        64,
        "separate questions on which temperatures, thresholds and exponents are chosen; 0: take them from the flags",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "repeats", 1, "answers a question of every strategy that draws at random, for mean@k", lower_bound=1
    )
    flags.DEFINE_bool(
        "time_votes",
        False,
        "also time the votes over fewer samples, which takes drawing these samples once more",
    )
    flags.DEFINE_string(
        "tune_input",
        None,
        "JSONL of the --tune questions, needed unless the benchmark is an embedded task; may hold none of the test questions",
    )
    flags.DEFINE_list("cat_sizes", ["2", "4", "8"], "numbers of branches K that CaT is run with")
    flags.DEFINE_enum(
        "self_evaluation",
        "auto",
        ["auto", "confidence", "prompt"],
        "reward of MCTS: the path's confidence, or the policy's own judgement by prompt; auto: prompt if the policy has a chat "
        "template and is not a tiny one, else confidence",
    )
    flags.DEFINE_multi_string("data", [], "BENCHMARK=PATH, a local copy of a benchmark's files (repeatable)")
    flags.DEFINE_bool(
        "allow_code_execution",
        False,
        "run code that the model wrote, in a sandbox, where a benchmark needs it: as many programs at once as there are cores",
    )
    flags.DEFINE_string(
        "traces", None, "annotated traces: print the table of every named confidence, decode nothing"
    )
    flags.DEFINE_list("compare", [], "two folders of earlier runs (A,B or A B): B minus A, no model needed")


def main() -> None:
    """Evaluate, compare, or tabulate confidences."""
    if FLAGS.instruction is not None and not FLAGS.input:
        raise UserError("--instruction goes with --input: benchmarks are asked in their own words")
    if FLAGS.compare:
        if len(FLAGS.compare) != 2:
            raise UserError(f"--compare={','.join(FLAGS.compare)}: give two folders or files of answers")
        compare(*FLAGS.compare)
        return
    for flag in ("model", "out_dir"):
        if getattr(FLAGS, flag) is None:
            raise UserError(f"--{flag} is needed, except with --compare")
    if FLAGS.traces:
        from experiments.confidence_report import check_places, report

        check_places(Path(FLAGS.out_dir))
        report(common.load_policy(), FLAGS.traces, Path(FLAGS.out_dir))
        common.write_html_report(FLAGS.out_dir, FLAGS.model)
        return
    benchmark_source.data_paths(FLAGS.data)
    names = [*FLAGS.benchmarks, *(["input"] if FLAGS.input else [])]
    if not names:
        raise UserError("nothing to evaluate on: give --benchmarks=NAME,... or --input=Q.jsonl")
    check_names(FLAGS.strategies)
    cat_sizes()
    out = Path(FLAGS.out_dir)
    for folder in (out,) if FLAGS.base is None else (out / "base", out / "model"):
        own = [file for name in names for file in (f"against.{name}.png", f"settings.{name}.json")]
        result_files.check_files([folder / file for file in (*RESULTS, *own)], folder / "manifest.json")
    if FLAGS.base is None:
        evaluate(FLAGS.model, out, names)
        return
    for path in (FLAGS.base, FLAGS.model):
        common.check_policy(path)
    comparison = claimed_comparison(out / "base", out / "model")
    # One process: what one policy compiles serves the other, whose shapes are the same.
    both = {
        name: evaluate(path, out / name, names)
        for name, path in (("base", FLAGS.base), ("model", FLAGS.model))
    }
    plot_both(both, out / "curve.png")
    compare(out / "base", out / "model", comparison)


def evaluate(model: str, out: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every benchmark with every strategy; the rows of the table."""
    strategies = check_names(FLAGS.strategies)
    policy = Policy.load(model, FLAGS.dtype, common.mesh())
    tests = {name: benchmark_source.open_benchmark(name, policy) for name in names}
    questions = {name: benchmark_source.questions_of(b, FLAGS.limit or None) for name, b in tests.items()}
    tuning = benchmark_source.tuning_questions(policy, questions)
    settings = base_settings(policy, [q for group in questions.values() for q in group])
    every = [*questions.values(), *(asked for _, asked in tuning.values())]
    benchmark_source.check_lengths(policy, list(itertools.chain(*every)), settings.sample.max_new_tokens)
    say_untuned([name for name in names if name not in tuning], settings, strategies)
    asked = run_settings(policy, strategies, settings, questions)
    manifest = Manifest.open(
        out / "manifest.json", program="evaluate", config=asked, free=ROWS, overwrite=FLAGS.overwrite
    )
    runner = Runner(policy, out, asked, strategies)
    for name, test in tests.items():
        chosen = runner.tuned(name, settings, *tuning.get(name, ()))
        runner.run(name, test, questions[name], chosen)
    rows = runner.finish()
    count = sum(map(len, questions.values()))
    manifest.finish(questions=count, rows=len(rows))
    common.write_html_report(out, model)
    common.closing(
        f"answers, table.md, calibration.md, paired.md, curve.png and report.html in {out}",
        {
            "questions": count,
            "strategies": len(strategies),
            "answers": runner.count,
            # What never came to its answer counts as wrong, which the accuracy does not tell.
            **({"cut at the limit": runner.cut} if runner.cut else {}),
        },
    )
    return rows


def plot_both(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """The curves of both policies side by side."""
    curve_plots.plot_curves(
        [row | {"benchmark": f"{row['benchmark']}, {name}"} for name, mine in rows.items() for row in mine],
        path,
    )


def claimed_comparison(a: str | Path, b: str | Path) -> Manifest | None:
    """The manifest of the comparison's files, where --out_dir names a folder for them."""
    if not FLAGS.out_dir:
        return None
    out = Path(FLAGS.out_dir)
    names = [f"compare.{kind}" for kind in ("json", "md", "csv")] + ["report.html"]
    files = [out / name for name in (*names, *(["curve.png"] if FLAGS.base else []))]
    return result_files.claim_files(files, "evaluate/compare", {"a": str(a), "b": str(b)})


def compare(a: str | Path, b: str | Path, manifest: Manifest | None = None) -> None:
    """B minus A on stored answers; `manifest` if the comparison's files are claimed already."""
    before, after = read_answers(a), read_answers(b)
    rows, left_out = two_runs.compare(before, after)
    manifest = manifest or claimed_comparison(a, b)
    for line in left_out:
        print(line, file=sys.stderr)
    common.say(markdown(rows, two_runs.COMPARED_COLUMNS))
    if manifest is not None:
        write_table(
            Path(FLAGS.out_dir) / "compare",
            rows,
            two_runs.COMPARED_COLUMNS,
            a=str(a),
            b=str(b),
            left_out=left_out,
        )
        common.write_html_report(FLAGS.out_dir, FLAGS.model)
        manifest.finish(rows=len(rows))
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS}
    common.closing(f"{b} against {a}", {VERDICTS[verdict]: count for verdict, count in counts.items()})


def joined(argv: Sequence[str]) -> list[str]:
    """`--compare A B` as `--compare=A,B`."""
    argv = list(argv)
    if "--compare" in argv:
        at = argv.index("--compare")
        pair = argv[at + 1 : at + 3]
        if len(pair) == 2 and not any(word.startswith("--") for word in pair):
            argv[at : at + 3] = [f"--compare={','.join(pair)}"]
    return argv


if __name__ == "__main__":
    sys.argv = joined(sys.argv)
    define_flags()
    common.run(main)
