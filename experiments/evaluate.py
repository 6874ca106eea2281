"""Is it better, at equal cost, and by how much? Strategies on benchmarks, with intervals, costs and paired tests.

    python -m experiments.evaluate --model=POLICY --benchmarks=graph --strategies=all --out_dir=DIR
    python -m experiments.evaluate --model=POLICY --input=questions.jsonl --strategies=greedy,sequence_vote,cat --out_dir=DIR
    python -m experiments.evaluate --compare BASE_DIR POLICY_DIR                    # stored answers, no model
    python -m experiments.evaluate --model=POLICY --traces=annotated.jsonl --out_dir=DIR   # every confidence, no decoding

Strategies: greedy, sample, self_consistency, confidence_vote, sequence_vote, cot_decoding, deepconf, deepconf_online,
self_certainty, kappa, beam, mcts, cat, cat_paper, or all. Temperatures, thresholds and exponents are chosen on --tune
separate questions (the tune split of an embedded task, or --tune_input); --tune=0 takes them from the flags.

DIR/answers.jsonl holds one line an answer: what was answered, whether it is right, decoded tokens, forward passes,
seconds. Every figure of DIR/table.{md,csv,json} and DIR/paired.{md,csv,json} can be computed from it; the ten-line
script is in experiments/README.md. DIR/curve.png shows accuracy against tokens; DIR/report.html shows all of it, with the
traces and trees of the first questions (DIR/samples).
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import benchmark_source, common, evaluate_samples

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags(required=False)
    common.define_decoding_flags(num_samples=16, temperature=0.7)
    common.define_question_flags()
    common.define_answer_flags()
    common.define_cat_flags()
    flags.DEFINE_list(
        "benchmarks", [], "embedded tasks (graph, chain) or benchmarks by name, comma-separated"
    )
    flags.DEFINE_list("strategies", ["all"], "strategies, comma-separated")
    flags.DEFINE_string("input", None, "JSONL of questions with gold answers, as a benchmark of one's own")
    flags.DEFINE_string("out_dir", None, "where everything goes")
    flags.DEFINE_integer("limit", 200, "questions a benchmark; 0 takes all", lower_bound=0)
    flags.DEFINE_integer(
        "group", 128, "questions decoded together; a killed run loses one group", lower_bound=1
    )
    flags.DEFINE_integer(
        "tune", 64, "questions on which settings are chosen; 0 takes the flags as they are", lower_bound=0
    )
    flags.DEFINE_integer(
        "repeats", 1, "answers a question of every strategy that draws at random, for mean@k", lower_bound=1
    )
    flags.DEFINE_string("tune_input", None, "JSONL of those questions, for what is no embedded task")
    flags.DEFINE_list("cat_sizes", ["2", "4", "8"], "numbers of branches K that CaT is run with")
    flags.DEFINE_enum(
        "self_evaluation",
        "auto",
        ["auto", "confidence", "prompt"],
        "MCTS reward; auto: prompt where there is a chat template",
    )
    flags.DEFINE_multi_string("data", [], "BENCHMARK=PATH, a local copy of a benchmark's files (repeatable)")
    flags.DEFINE_bool(
        "allow_code_execution",
        False,
        "run code that the model wrote, in a sandbox, where a benchmark needs it",
    )
    flags.DEFINE_string(
        "traces", None, "annotated traces: print the table of every named confidence, decode nothing"
    )
    flags.DEFINE_list("compare", [], "two folders of earlier runs (A,B or A B): B minus A, no model needed")


def main() -> None:
    """Evaluate, compare, or tabulate confidences."""
    from caspo_jax.errors import UserError

    if FLAGS.compare:
        if len(FLAGS.compare) != 2:
            raise UserError(f"--compare={','.join(FLAGS.compare)}: give two folders or files of answers")
        compare(*FLAGS.compare)
        return
    for flag in ("model", "out_dir"):
        if getattr(FLAGS, flag) is None:
            raise UserError(f"--{flag} is needed, except with --compare")
    if FLAGS.traces:
        from experiments.confidence_report import report

        report(common.load_policy(), FLAGS.traces, Path(FLAGS.out_dir))
        common.write_html_report(FLAGS.out_dir, FLAGS.model)
        return
    benchmark_source.data_paths(FLAGS.data)
    names = [*FLAGS.benchmarks, *(["input"] if FLAGS.input else [])]
    if not names:
        raise UserError("nothing to evaluate on: give --benchmarks=NAME,... or --input=Q.jsonl")
    evaluate(names)


def evaluate(names: Sequence[str]) -> None:
    """Every benchmark with every strategy."""
    from caspo_jax.evaluation.strategies import check_names
    from caspo_jax.store import Manifest

    strategies = check_names(FLAGS.strategies)
    policy = common.load_policy()
    out = Path(FLAGS.out_dir)
    tests = {name: benchmark_source.open_benchmark(name, policy) for name in names}
    questions = {name: benchmark_source.questions_of(b, FLAGS.limit or None) for name, b in tests.items()}
    settings = base_settings(policy, [q for group in questions.values() for q in group])
    asked = run_settings(policy, strategies, settings, questions)
    manifest = Manifest.open(
        out / "manifest.json", program="evaluate", config=asked, overwrite=FLAGS.overwrite
    )
    runner = Runner(policy, out, asked, strategies, FLAGS.overwrite)
    for name, test in tests.items():
        chosen = runner.tuned(name, settings)
        runner.run(name, test, questions[name], chosen)
    rows = runner.finish()
    if not manifest.complete:
        manifest.finish(questions=sum(map(len, questions.values())), rows=len(rows))
    common.write_html_report(out, FLAGS.model)
    common.closing(
        f"answers, table.md, paired.md, curve.png and report.html in {out}",
        {
            "questions": sum(map(len, questions.values())),
            "strategies": len(strategies),
            "answers": runner.count,
        },
    )


def base_settings(policy: Any, questions: Sequence[Any]) -> Any:
    """The flags as settings of all strategies."""
    from caspo_jax.evaluation.strategies import Settings

    sample = common.sample_config(policy, questions, num_samples=1)
    judge = FLAGS.self_evaluation
    if judge == "auto":
        judge = "prompt" if getattr(policy.tokenizer, "chat_template", None) else "confidence"
    return Settings(
        sample=sample,
        samples=FLAGS.num_samples,
        warm_up=min(16, max(1, FLAGS.num_samples // 2)),
        cat=common.cat_config(policy, sample),
        cat_sizes=tuple(int(size) for size in FLAGS.cat_sizes),
        self_evaluation=judge,
    )


def run_settings(policy: Any, strategies: Sequence[str], settings: Any, questions: Any) -> dict[str, Any]:
    """What decides the answers, for the manifest."""
    from caspo_jax.training.stages.policy import questions_digest

    return {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "strategies": list(strategies),
        "settings": dataclasses.asdict(settings),
        "questions": {name: questions_digest(group) for name, group in questions.items()},
        "seed": FLAGS.seed,
        "group": FLAGS.group,
        "repeats": FLAGS.repeats,
        "tune": FLAGS.tune,
        "tune_input": FLAGS.tune_input,
        "batch_size": FLAGS.batch_size,
    }


class Runner:
    """Runs strategies a group of questions at a time, into files that survive a kill."""

    def __init__(
        self, policy: Any, out: Path, config: dict[str, Any], strategies: Sequence[str], overwrite: bool
    ):
        from caspo_jax.training.stages.policy import open_output

        self.policy, self.out, self.strategies = policy, out, strategies
        self.outputs = {
            name: open_output(out / f"{name}.jsonl", "evaluate", config, overwrite)
            for name in ("groups", "samples", "answers", "tuning")
        }
        self.sames: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.count = 0

    def context(self, benchmark: Any, questions: Sequence[Any], repeat: int = 0, keep: Any = None) -> Any:
        """What the strategies are given; each repeat draws by a key of its own."""
        import jax

        from caspo_jax.evaluation.strategies import Context

        return Context(
            model=self.policy.model,
            tokenizer=self.policy.tokenizer,
            questions=questions,
            key=jax.random.fold_in(jax.random.key(FLAGS.seed), repeat)
            if repeat
            else jax.random.key(FLAGS.seed),
            extract=benchmark.extract,
            score=lambda answer, question: bool(benchmark.score(answer, question)),
            same=benchmark.equal,
            batch_size=FLAGS.batch_size,
            keep=keep,
        )

    def tuned(self, name: str, settings: Any) -> Any:
        """The settings chosen on separate questions, taken from the file where they were chosen before."""
        import json

        from caspo_jax.evaluation.formats import plain
        from caspo_jax.evaluation.tuning import tune
        from caspo_jax.store import write_json

        separate = FLAGS.tune > 0 and benchmark_source.has_tuning_questions(name)
        path = self.out / f"settings.{name}.json"
        if separate and not (
            path.exists() and name in self.outputs["tuning"].done | self._finished("tuning")
        ):
            benchmark = benchmark_source.tuning_benchmark(name, self.policy)
            asked = benchmark_source.questions_of(benchmark, FLAGS.tune)
            with common.Progress(1, f"{name}: settings", unit="trial") as progress:
                settings, trials = tune(
                    self.context(benchmark, asked), settings, self.strategies, progress.reach
                )
            write_json(
                path,
                plain({"questions": len(asked), "settings": dataclasses.asdict(settings), "trials": trials}),
            )
            self.outputs["tuning"].append([{"id": name}])
        elif separate:
            settings = restored(settings, json.loads(path.read_text(encoding="utf-8"))["settings"])
        self.settings[name] = settings
        return settings

    def _finished(self, output: str) -> set[str]:
        from caspo_jax.store import read_jsonl

        written = self.outputs[output]
        return {str(r["id"]) for _, r in read_jsonl(written.path)} if written.complete else set()

    def run(self, name: str, benchmark: Any, questions: Sequence[Any], settings: Any) -> None:
        """All strategies on one benchmark."""
        from caspo_jax.evaluation.strategies import families, run_family

        self.sames[name] = benchmark.equal
        plan = families(self.strategies)
        parts = even_groups(questions, FLAGS.group)
        done = self.outputs["groups"].done | self._finished("groups")
        with common.Progress(len(parts) * FLAGS.repeats * len(plan), name, unit="part") as progress:
            for repeat, (index, part) in itertools.product(range(FLAGS.repeats), enumerate(parts)):
                keep = evaluate_samples.keeper(self.out, name, benchmark, part)
                context = self.context(benchmark, part, repeat, None if repeat or index else keep)
                for family, strategies in plan.items():
                    mark = f"{name}/{repeat}/{index}/{family}"
                    # What is drawn at random once is enough for greedy choices; votes are matched on the first pool.
                    if mark not in done and not (repeat and family in ("greedy", "cot_decoding")):
                        found = run_family(family, strategies, context, settings)
                        self.write(name, mark, found, repeat, settings)
                    progress.update(1, part=family)

    def write(self, name: str, mark: str, found: Any, repeat: int, settings: Any) -> None:
        """Append what a family found; the mark comes last."""
        from caspo_jax.evaluation.results import answer_record, sample_record

        if repeat == 0:
            self.outputs["samples"].append([sample_record(s, name) for group in found.samples for s in group])
        moved = [
            dataclasses.replace(
                a, index=repeat * (settings.samples if a.strategy == "sample" else 1) + a.index
            )
            for a in found.answers
        ]
        self.outputs["answers"].append([answer_record(a, name) for a in moved])
        self.outputs["groups"].append([{"id": mark}])

    def finish(self) -> list[dict[str, Any]]:
        """Votes at CaT's cost, the tables, the curve."""
        from caspo_jax.evaluation import plots, results
        from caspo_jax.evaluation.formats import markdown, write_table
        from caspo_jax.store import read_jsonl

        written = self.outputs["answers"]
        for output in ("groups", "samples", "tuning"):
            if not self.outputs[output].complete:
                self.outputs[output].finish()
        if not written.complete:
            records = written.records()
            samples = [r for _, r in read_jsonl(self.out / "samples.jsonl")]
            for name, settings in self.settings.items():
                mine = [r for r in records if r["benchmark"] == name and not r["size"].startswith("=")]
                drawn = [r for r in samples if r["benchmark"] == name]
                written.append(results.matched_votes(mine, drawn, settings, self.sames[name]))
            written.finish()
        records = results.read_answers(written.path)
        self.count = len(records)
        rows, paired = results.table(records), results.paired_table(records)
        write_table(self.out / "table", rows, results.COLUMNS)
        plots.plot_curves(rows, self.out / "curve.png")
        common.say(markdown(rows, results.COLUMNS))
        if paired:
            write_table(self.out / "paired", paired, results.PAIRED_COLUMNS)
            heading = "\nCaT against the others, paired by question"
            common.say(f"{heading}\n\n{markdown(paired, results.PAIRED_COLUMNS)}")
        return rows


def even_groups(questions: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Groups of at most `size`, as even as can be: few shapes to compile."""
    count = -(-len(questions) // size)
    per = -(-len(questions) // count)
    return [questions[i : i + per] for i in range(0, len(questions), per)]


def restored(base: Any, values: dict[str, Any]) -> Any:
    """A (nested) settings dataclass from its JSON form."""
    changes = {}
    for field in dataclasses.fields(base):
        before, value = getattr(base, field.name), values[field.name]
        if dataclasses.is_dataclass(before):
            value = restored(before, value)
        elif isinstance(before, tuple):
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        changes[field.name] = value
    return dataclasses.replace(base, **changes)


def compare(a: str, b: str) -> None:
    """B minus A on stored answers."""
    from caspo_jax.evaluation import results
    from caspo_jax.evaluation.formats import markdown, write_table

    rows = results.compare(results.read_answers(a), results.read_answers(b))
    common.say(markdown(rows, results.COMPARED_COLUMNS))
    if FLAGS.out_dir:
        write_table(Path(FLAGS.out_dir) / "compare", rows, results.COMPARED_COLUMNS, a=str(a), b=str(b))
        common.write_html_report(FLAGS.out_dir, None)
    common.closing(
        f"{b} against {a}",
        {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("above", "equal", "below")},
    )


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
