"""Where `evaluate` finds its questions: embedded tasks, the registry of benchmarks, a file of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks import benchmark_names, embedded_benchmark, get_benchmark
from caspo_jax.evaluation.overlap import prompt_digest, used_before
from caspo_jax.models import check_prompt_ids, encode_prompt
from caspo_jax.tasks import extract_answer, get_task
from caspo_jax.tasks.registry import TASKS
from caspo_jax.types import Question
from experiments import common

FLAGS = flags.FLAGS


class Benchmark(Protocol):
    """Questions, how they are asked, how an answer is read and scored."""

    name: str

    @property
    def runs_code(self) -> bool:
        """Are answers run to be scored?"""
        ...

    def load(self, path: str | Path | None = None, limit: int | None = None) -> Sequence[Question]:
        """The first `limit` questions, with gold answers."""
        ...

    def prompt(self, question: Question) -> str:
        """The user's message."""
        ...

    def extract(self, text: str) -> str | None:
        """The answer that an output gives."""
        ...

    def score(self, answer: str, question: Question) -> bool | None:
        """Is an extracted answer right?"""
        ...

    def equal(self, one: str, other: str) -> bool:
        """Are two answers one? For votes."""
        ...


@dataclasses.dataclass(frozen=True)
class FileBenchmark:
    """Questions of --input, answers read and compared as --answers says."""

    path: str
    functions: Any  # (extract, equal)
    name: str = "input"
    runs_code: bool = False

    def load(self, path: str | Path | None = None, limit: int | None = None) -> Sequence[Question]:
        """The first questions of the file."""
        return common.load_questions(self.path, need_gold=True)[:limit]

    def prompt(self, question: Question) -> str:
        """The question as it stands, --instruction in it."""
        return question.question or ""

    def extract(self, text: str) -> str | None:
        """The answer of --answers' kind."""
        return self.functions[0](text)

    def score(self, answer: str, question: Question) -> bool:
        """Against the gold answer."""
        return self.functions[1](str(question.gold), answer)

    def equal(self, one: str, other: str) -> bool:
        """As an answer is held against a gold one."""
        return self.functions[1](one, other)


@dataclasses.dataclass(frozen=True)
class TuneBenchmark:
    """A file of questions that are asked, read and scored as those of a benchmark are."""

    benchmark: Any
    path: str
    name: str = "tune"

    @property
    def runs_code(self) -> bool:
        """As the benchmark's answers are."""
        return self.benchmark.runs_code

    def load(self, path: str | Path | None = None, limit: int | None = None) -> Sequence[Question]:
        """The first questions of the file."""
        own = isinstance(self.benchmark, FileBenchmark)  # any other asks in its own words
        need_gold = not self.benchmark.runs_code
        return common.load_questions(self.path, need_gold=need_gold, instruct=own)[:limit]

    def prompt(self, question: Question) -> str:
        """As the benchmark asks."""
        return self._with(question, self.benchmark.prompt, question)

    def extract(self, text: str) -> str | None:
        """As the benchmark reads."""
        return self.benchmark.extract(text)

    def score(self, answer: str, question: Question) -> bool | None:
        """As the benchmark scores."""
        return self._with(question, self.benchmark.score, answer, question)

    def equal(self, one: str, other: str) -> bool:
        """As the benchmark compares."""
        return self.benchmark.equal(one, other)

    def _with(self, question: Question, of: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return of(*arguments)
        except KeyError as missing:
            raise UserError(
                f"{self.path}: question {question.id!r} has no field {missing} in its `extra`, "
                f"without which {self.benchmark.name} cannot ask or score it"
            ) from missing


def open_benchmark(name: str, policy: Any) -> Any:
    """The benchmark of that name.

    Raises:
      UserError: there is none, or its answers would have to be run and --allow_code_execution is off.
    """
    if name == "input":
        return FileBenchmark(FLAGS.input, common.answer_functions(policy))
    if name in TASKS:
        return _task_benchmark(name, "test")
    if name not in benchmark_names():
        known = ", ".join((*TASKS, *benchmark_names()))
        raise UserError(f"--benchmarks={name}: choose from {known}, or give --input=Q.jsonl")
    found = get_benchmark(name, allow_code_execution=FLAGS.allow_code_execution)
    found.check_allowed()
    return found


def _task_benchmark(name: str, split: str) -> Any:
    """An embedded task's questions of one split."""
    return embedded_benchmark(get_task(name), extract_answer, split=split, seed=FLAGS.seed, size=200)


def has_tuning_questions(name: str) -> bool:
    """Are there questions to choose settings on that are none of those the strategies are reported on?"""
    return name in TASKS or FLAGS.tune_input is not None


def tuning_benchmark(name: str, policy: Any) -> Any:
    """Those questions: the tune split of an embedded task; the file of --tune_input, asked and scored as `name` is."""
    if name in TASKS:
        return _task_benchmark(name, "tune")
    return TuneBenchmark(open_benchmark(name, policy), FLAGS.tune_input)


def tuning_questions(
    policy: Any, questions: Mapping[str, Sequence[Question]]
) -> dict[str, tuple[Any, list[Question]]]:
    """Benchmark -> (who asks, --tune questions that settings are chosen on), for those that have such questions.

    Args:
      policy: who answers.
      questions: benchmark -> those that the strategies are reported on.

    Raises:
      UserError: a question is among both.
    """
    found = {}
    for name, reported in questions.items():
        if FLAGS.tune == 0 or not has_tuning_questions(name):
            continue
        benchmark = tuning_benchmark(name, policy)
        asked = questions_of(benchmark, FLAGS.tune)
        twice = used_before(asked, {prompt_digest(question) for question in reported})
        if twice:
            raise UserError(
                f"{len(twice)} of the {len(asked)} questions that settings are chosen on are among the {len(reported)} of "
                f"{name} that they are reported on (the first: {twice[0].id!r}): give others with --tune_input, or --tune=0"
            )
        found[name] = benchmark, asked
    return found


def questions_of(benchmark: Any, limit: int | None) -> list[Question]:
    """What the policy is asked: the benchmark's prompts, with ids and golds as they are."""
    asked = []
    path = data_paths(FLAGS.data).get(benchmark.name)
    for question in benchmark.load(path, limit):
        if question.question is not None:
            question = dataclasses.replace(question, question=benchmark.prompt(question))
        asked.append(question)
    return asked


def check_lengths(policy: Any, questions: Sequence[Question], new_tokens: int) -> None:
    """Refuses questions that the policy cannot be asked, with as many new tokens: before anything is written or decoded.

    Raises:
      UserError: names the first of them.
    """
    for question in questions:
        prompt = encode_prompt(policy.tokenizer, question)
        check_prompt_ids(prompt, policy.model.config, question.name, new_tokens)


def data_paths(given: Sequence[str]) -> dict[str, str]:
    """`--data=math500=FILE` as {benchmark: path}."""
    found = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not equals or not path:
            raise UserError(f"--data={item}: write --data=BENCHMARK=PATH")
        found[name] = path
    return found
