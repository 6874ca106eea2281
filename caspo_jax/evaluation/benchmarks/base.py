"""What a benchmark is: where its questions come from, how they are asked, and how an answer is read and scored."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks.loading import Source, rows
from caspo_jax.evaluation.execution import Sandbox
from caspo_jax.store import parse_at
from caspo_jax.types import Question

Row = Mapping[str, Any]

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."  # Qwen's instruction


def instructed(question: str, instruction: str) -> str:
    """A user's message: the question, and the instruction on a line of its own after it."""
    return f"{question}\n{instruction}"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark; get one from `get_benchmark`.

    Attributes:
      name: what `--benchmarks` takes.
      family: math | code | choice | table | logic | embedded.
      source: the dataset on the Hugging Face hub, with split, revision and licence; None for an embedded task.
      size: questions of the whole benchmark; None where it is not fixed.
      read: (row, name of the row) -> Question, or None for a row that is not part of this benchmark.
      ask: question -> the user's message.
      answer: text -> the answer in it, or None.
      judge: (answer, question, sandbox) -> is it right? None where that cannot be told. The question is as `read` made it or
        as it is `asked`, its text then the whole prompt: what else of the row it needs belongs in `extra`.
      same: (answer, answer) -> do they mean the same? For votes.
      runs_code: scoring runs code that the model wrote; `judge` is then called from several threads at once.
      repeats: samples a question that a report should average over (mean@k); more than 1 on small benchmarks.
      notes: what a reader of the numbers should know.
      questions: how many -> the questions; of an embedded task.
      sandbox: where code may run; None until it is allowed.
    """

    name: str
    family: str
    source: Source | None
    size: int | None
    read: Callable[[Row, str], Question | None]
    ask: Callable[[Question], str]
    answer: Callable[[str], str | None]
    judge: Callable[[str, Question, Sandbox | None], bool | None]
    same: Callable[[str, str], bool]
    runs_code: bool = False
    repeats: int = 1
    notes: str = ""
    questions: Callable[[int], Sequence[Question]] | None = None
    sandbox: Sandbox | None = None

    def stream(self, path: str | Path | None = None) -> Iterator[Question]:
        """The questions one by one, from the hub or from a local copy (`loading.rows` says which it takes).

        Raises:
          UserError: nothing there, or a row of another layout; names file and line (or row) and the field.
        """
        if self.source is None:
            if path is not None:
                raise UserError(f"{self.name} is embedded and made on the spot: it takes no file or folder")
            if self.questions is None or self.size is None:
                raise UserError(f"benchmark {self.name!r} has no source: give it one, or questions and size")
            yield from self.questions(self.size)
            return
        for number, (where, row) in enumerate(rows(self.source, path, self.name)):
            question = parse_at(where, functools.partial(self._read, name=str(number)), row)
            if question is not None:
                yield question

    def _read(self, row: Row, name: str) -> Question | None:
        try:
            return self.read(row, name)
        except UserError as error:
            raise UserError(f"{error} (a row of {self.name}; its fields: {', '.join(row)})") from error

    def load(self, path: str | Path | None = None, limit: int | None = None) -> list[Question]:
        """The first `limit` questions, or all.

        Raises:
          UserError: as `stream`; two questions of one id; none at all.
        """
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit}: give 1 or more")
        if self.questions is not None and limit is not None and path is None:
            return list(self.questions(limit))
        found: dict[str, Question] = {}
        for question in self.stream(path):
            if question.id in found:
                raise UserError(f"{path or self.name}: two questions have the id {question.id!r}")
            found[question.id] = question
            if len(found) == limit:
                break
        if not found:
            raise UserError(f"{path or self.name}: no question of {self.name} in it")
        return list(found.values())

    def prompt(self, question: Question) -> str:
        """What the model is asked: the user's message, before any chat template."""
        return self.ask(question)

    def asked(self, question: Question) -> Question:
        """The question as `generate` and `cat_search` take it: its text is the prompt; id, gold and extra stay."""
        return dataclasses.replace(question, question=self.ask(question), prompt=None, prompt_ids=None)

    def extract(self, text: str) -> str | None:
        """The answer that an output gives, or None."""
        return self.answer(text)

    def score(self, answer: str | None, question: Question) -> bool | None:
        """Is an extracted answer right? No answer is wrong; None where the benchmark cannot tell.

        Raises:
          UserError: the answer would have to be run, and that was not allowed.
        """
        if answer is None:
            return False
        self.check_allowed()
        return self.judge(answer, question, self.sandbox)

    def check_allowed(self) -> None:
        """Raises UserError where answers would have to be run, and that was not allowed: before anything is decoded."""
        if self.runs_code and self.sandbox is None:
            raise UserError(
                f"{self.name} runs code that the model wrote: allow it with --allow_code_execution"
            )

    def grade(self, text: str, question: Question) -> bool | None:
        """`score` of the answer that an output gives."""
        return self.score(self.extract(text), question)

    def equal(self, one: str, other: str) -> bool:
        """Do two extracted answers mean the same? Merges votes."""
        return self.same(one, other)


def text(row: Row, *fields: str) -> str:
    """The first of these fields that is there, as text; numbers are written out.

    Raises:
      UserError: none is there, or what is there is no text or number, or empty.
    """
    for field in fields:
        value = row.get(field)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f"field `{field}` must be text, found {type(value).__name__}")
        if str(value).strip():
            return str(value)
        raise UserError(f"field `{field}` is empty")
    raise UserError(f"no field `{'` or `'.join(fields)}`")


def texts(row: Row, field: str) -> list[str]:
    """A field that holds a list of texts, one at least."""
    value = row.get(field)
    if value is None:
        raise UserError(f"no field `{field}`")
    if not isinstance(value, list | tuple) or not value or not all(isinstance(v, str) for v in value):
        raise UserError(f"field `{field}` must be a list of texts, found {value!r:.60}")
    return list(value)


def identity(row: Row, benchmark: str, name: str, *fields: str) -> str:
    """`BENCHMARK/ID`, with the row's own id where it has one."""
    own = next((row[f] for f in fields if row.get(f) is not None), name)
    return f"{benchmark}/{own}"
