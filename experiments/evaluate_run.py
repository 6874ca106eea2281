"""`evaluate` at work: strategies on a group of questions at a time, into files that survive a kill."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from absl import flags

from caspo_jax.evaluation import answer_calibration, curve_plots, results
from caspo_jax.evaluation.answer_records import answer_record, gold_hash, read_answers, sample_record
from caspo_jax.evaluation.formats import markdown, plain, tables, write_table
from caspo_jax.evaluation.strategies import Context, Found, Settings, families, run_family
from caspo_jax.evaluation.tuning import tune
from caspo_jax.store import read_json, read_jsonl, write_json
from caspo_jax.training.stages import Policy
from caspo_jax.training.stages.policy import open_output
from caspo_jax.types import Equal, Question
from experiments import common, evaluate_samples
from experiments.evaluate_settings import group_size, restored

if TYPE_CHECKING:
    from experiments.benchmark_source import Benchmark

FLAGS = flags.FLAGS
MOST_JUDGES = 32  # programs that run at once, where answers are programs; no more than there are cores


class Runner:
    """Runs strategies a group of questions at a time, into files that survive a kill.

    Attributes:
      sames: benchmark -> are two of its answers one?
      settings: benchmark -> what its strategies ran with.
      count: answers, once all are there.
      cut: of the single outputs (greedy, sample), those as long as --max_new_tokens, once all are there.
    """

    def __init__(self, policy: Policy, out: Path, config: Mapping[str, Any], strategies: Sequence[str]):
        self.policy, self.out, self.strategies = policy, out, strategies
        self.outputs = {
            name: open_output(out / f"{name}.jsonl", "evaluate", config, FLAGS.overwrite, f"evaluate_{name}")
            for name in ("groups", "samples", "answers", "tuning")
        }
        self.sames: dict[str, Equal] = {}
        self.settings: dict[str, Settings] = {}
        self.count = self.cut = 0

    def context(
        self,
        benchmark: Benchmark,
        questions: Sequence[Question],
        repeat: int = 0,
        keep: Callable[..., None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Context:
        """What the strategies are given; each repeat draws by a key of its own."""
        key = jax.random.key(FLAGS.seed)
        return Context(
            model=self.policy.model,
            tokenizer=self.policy.tokenizer,
            questions=questions,
            key=jax.random.fold_in(key, repeat) if repeat else key,
            extract=benchmark.extract,
            score=lambda answer, question: bool(benchmark.score(answer, question)),
            same=benchmark.equal,
            batch_size=FLAGS.batch_size,
            keep=keep,
            progress=progress,
            judges=min(MOST_JUDGES, len(os.sched_getaffinity(0))) if benchmark.runs_code else 1,
        )

    def tuned(
        self,
        name: str,
        settings: Settings,
        benchmark: Benchmark | None = None,
        asked: Sequence[Question] = (),
    ) -> Settings:
        """The settings chosen on separate questions, taken from the file where they were chosen before; without such
        questions as they are."""
        path = self.out / f"settings.{name}.json"
        if benchmark is not None and not (path.exists() and name in self._done("tuning")):
            with common.Progress(1, f"{name}: settings", unit="trial") as progress:
                context = self.context(benchmark, asked, progress=within(progress, {}))
                settings, trials = tune(context, settings, self.strategies, progress.reach)
            write_json(
                path,
                plain({"questions": len(asked), "settings": dataclasses.asdict(settings), "trials": trials}),
            )
            self.outputs["tuning"].append([{"id": name}])
        elif benchmark is not None:
            settings = restored(settings, read_json(path)["settings"])
        self.settings[name] = settings
        return settings

    def _done(self, output: str) -> set[str]:
        """Ids of what an output holds already."""
        written = self.outputs[output]
        if not written.complete:
            return written.done
        return {str(record["id"]) for _, record in read_jsonl(written.path)}

    def run(self, name: str, benchmark: Benchmark, questions: Sequence[Question], settings: Settings) -> None:
        """All strategies on one benchmark."""
        self.sames[name] = benchmark.equal
        wanted = getattr(benchmark, "repeats", 1)
        if FLAGS.repeats < wanted:
            common.say(
                f"{name} is small: reports of it average over {wanted} answers a question, --repeats={wanted}"
            )
        plan = families(self.strategies)
        done = self._done("groups")
        parts, of = cut(questions, group_size(settings))
        shown: dict[str, Any] = {}
        with common.Progress(len(parts) * FLAGS.repeats * len(plan), name, unit="part") as progress:
            for repeat, (index, part) in itertools.product(range(FLAGS.repeats), enumerate(parts)):
                kept = not repeat and not index
                keep = evaluate_samples.keeper(self.out, name, benchmark, part) if kept else None
                context = self.context(benchmark, part, repeat, keep, within(progress, shown))
                for family, strategies in plan.items():
                    shown["part"] = family
                    mark = f"{name}/{repeat}/{index}{of}/{family}"
                    # What is drawn at random once is enough for greedy choices; votes are matched on the first pool.
                    if mark not in done and not (repeat and family in ("greedy", "cot_decoding")):
                        found = run_family(family, strategies, context, settings)
                        self.write(name, mark, found, repeat, settings, part)
                    progress.update(1, **shown)

    def write(
        self,
        name: str,
        mark: str,
        found: Found,
        repeat: int,
        settings: Settings,
        part: Sequence[Question],
    ) -> None:
        """Append what a family found on a group of questions; the mark comes last."""
        if repeat == 0:
            self.outputs["samples"].append([sample_record(s, name) for group in found.samples for s in group])
        moved = [
            dataclasses.replace(
                a, index=repeat * (settings.samples if a.strategy == "sample" else 1) + a.index
            )
            for a in found.answers
        ]
        golds = {question.id: gold_hash(question.gold) for question in part}
        self.outputs["answers"].append([answer_record(a, name, golds) for a in moved])
        self.outputs["groups"].append([{"id": mark}])

    def finish(self) -> list[dict[str, Any]]:
        """Ends the files; writes and prints the tables, plots the curves. Returns the rows of the table of strategies."""
        records = self._all_answers()
        self.count = len(records)
        self.cut = sum(
            record["strategy"] in ("greedy", "sample")
            and record["tokens"] >= self.settings[record["benchmark"]].sample.max_new_tokens
            for record in records
        )
        rows, paired = results.table(records), results.paired_table(records)
        write_table(self.out / "table", rows, results.COLUMNS)
        curve_plots.plot_curves(rows, self.out / "curve.png")
        for name in self.settings if "cat" in self.strategies and len(self.strategies) > 1 else ():
            curve_plots.plot_against(rows, name, self.out / f"against.{name}.png")
        common.say(markdown(rows, results.COLUMNS))
        calibration = answer_calibration.calibration_table(records)
        if calibration:
            write_table(self.out / "calibration", calibration, answer_calibration.COLUMNS)
            heading = "\nConfidence in the answers against their correctness"
            common.say(f"{heading}\n\n{tables(calibration, answer_calibration.COLUMNS)}")
        if paired:
            write_table(self.out / "paired", paired, results.PAIRED_COLUMNS)
            heading = "\nCaT against the others, paired by question"
            common.say(f"{heading}\n\n{markdown(paired, results.PAIRED_COLUMNS)}")
        return rows

    def _all_answers(self) -> list[dict[str, Any]]:
        """Ends the files, after the votes at CaT's cost were added to the answers; the records of all answers."""
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
        return read_answers(written.path)


def within(progress: common.Progress, shown: Mapping[str, Any]) -> Callable[[int, int], None]:
    """A function (done, in all) that shows how far the decoding of a part is, beside `shown`."""
    return lambda done, of: progress.update(0, **shown, decoded=f"{done:,} of {of:,}")


def cut(questions: Sequence[Question], size: int) -> tuple[list[Sequence[Question]], str]:
    """Groups of a benchmark's questions, and what follows a group's number in its mark.

    Two groups at least where the first still holds all questions whose traces are kept, so that one is timed without
    compilation.
    """
    parts = even_groups(questions, size, 2 if len(questions) >= 2 * evaluate_samples.QUESTIONS else 1)
    return parts, f"-of-{len(parts)}"


def even_groups(questions: Sequence[Question], size: int, least: int = 1) -> list[Sequence[Question]]:
    """At least `least` groups of at most `size`, as even as can be: few shapes to compile."""
    count = max(least, -(-len(questions) // size))
    per = -(-len(questions) // count)
    return [questions[i : i + per] for i in range(0, len(questions), per)]
