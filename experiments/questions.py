"""Questions of a program's --input: read, checked, and followed by --instruction."""

from __future__ import annotations

import dataclasses
import functools

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks.base import BOXED, instructed
from caspo_jax.records import question_from_record
from caspo_jax.store import parse_at, read_jsonl
from caspo_jax.types import Question
from experiments.escapes import unescaped

FLAGS = flags.FLAGS


def load_questions(path: str, *, need_gold: bool = False, instruct: bool = True) -> list[Question]:
    """Read a JSONL of questions by --question_field and --gold_field, followed by --instruction.

    Args:
      path: the file.
      need_gold: whether every question must have a gold answer.
      instruct: whether --instruction follows each; a benchmark asks in its own way.

    Raises:
      UserError: a malformed question, an id that was used before or a missing gold answer (file:line), no questions, none
        that an instruction could follow.
    """
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for number, (where, record) in enumerate(read_jsonl(path)):
        parse = functools.partial(
            question_from_record,
            question_field=FLAGS.question_field,
            gold_field=FLAGS.gold_field,
            default_id=str(number),
        )
        question = parse_at(where, parse, record)
        if question.id in seen:
            raise UserError(f"{where}: id {question.id!r} was used before, at {seen[question.id]}")
        if need_gold and question.gold is None:
            field = f"field `{FLAGS.gold_field}`" if FLAGS.gold_field else "field `gold` or `answer`"
            raise UserError(f"{where}: question {question.id!r} has no gold answer ({field})")
        seen[question.id] = where
        questions.append(dataclasses.replace(question, where=where))
    if not questions:
        raise UserError(f"{path}: no questions in it")
    if FLAGS.gold_field and all(question.gold is None for question in questions):
        raise UserError(f"{path}: no question has a field {FLAGS.gold_field!r} (named by --gold_field)")
    text = instruction() if instruct else None
    return questions if text is None else _instructed(questions, text, path)


def _instructed(questions: list[Question], text: str, path: str) -> list[Question]:
    """The questions, each that is no final prompt followed by the text."""
    asked = [q.question if q.prompt is None and q.prompt_ids is None else None for q in questions]
    if not any(question is not None for question in asked):
        raise UserError(
            f"{path}: its questions are final prompts, which --instruction does not change: drop it"
        )
    return [
        q if question is None else dataclasses.replace(q, question=instructed(question, text))
        for q, question in zip(questions, asked, strict=True)
    ]


def instruction() -> str | None:
    """What --instruction says, `boxed` being the benchmarks' own sentence; None without it.

    Raises:
      UserError: it is blank, or holds an unknown escape.
    """
    if FLAGS.instruction is None:
        return None
    text = BOXED if FLAGS.instruction == "boxed" else unescaped("instruction", FLAGS.instruction)
    if not text.strip():
        raise UserError("--instruction is blank: give a text, boxed, or leave it out")
    return text


def instruction_setting() -> dict[str, str]:
    """`instruction()` as a setting for manifests; no setting without it."""
    text = instruction()
    return {} if text is None else {"instruction": text}
