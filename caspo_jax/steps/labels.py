"""Recorded step labels: our own, and those of PRM800K, ProcessBench and Math-Shepherd."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from caspo_jax.errors import UserError
from caspo_jax.models.tokenizer import whole_text
from caspo_jax.steps.verifiers import RecordedLabels
from caspo_jax.store import parse_at, read_jsonl
from caspo_jax.types import VERDICTS, Verdict

Neutral = Literal["unknown", "correct", "wrong"]

_MOST_STEPS = 100_000  # of a trace: verdicts are a list up to the last that is named
# How the last step of a solution says that it is: in PRM800K, and in the data sets that share its flat form.
_ANSWER = re.compile(r"#\s*Answer")
_STATED = re.compile(r"#\s*Answer|\\boxed\b|####|\banswer\s*(is|:)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class LabelledSteps:
    """A solution in steps, each with a verdict; no tokens."""

    id: str
    question: str
    steps: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    gold: str | None = None
    ended: bool = True  # the last step ended the solution

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.verdicts):
            raise UserError(
                f"solution {self.id!r} has {len(self.steps)} steps and {len(self.verdicts)} labels"
            )


def verdict_of(label: Any, neutral: Neutral = "unknown") -> Verdict:
    """One label as a verdict: a verdict's name, true/false, +/-, or PRM800K's 1/0/-1 (0 is `neutral`)."""
    if label is None:
        return "unknown"
    if isinstance(label, str) and label in VERDICTS:
        return label  # type: ignore[return-value]
    if label == "+" or (isinstance(label, (bool, int, float)) and label == 1):
        return "correct"
    if label in ("-", -1) or label is False:
        return "wrong"
    if label == 0:
        return neutral
    raise UserError(
        f"unknown label {label!r}: choose from {', '.join(VERDICTS)}, true, false, +, -, 1, 0, -1"
    )


def first_error_verdicts(first_error: int, steps: int) -> tuple[Verdict, ...]:
    """ProcessBench's label: steps before the first error are correct, later ones unknown; -1 is no error."""
    if not -1 <= first_error < steps:
        raise UserError(f"label {first_error} is no step of {steps} (-1: no error)")
    right = steps if first_error < 0 else first_error
    verdicts: list[Verdict] = ["correct"] * right
    if first_error >= 0:
        verdicts.append("wrong")
        verdicts.extend(["unknown"] * (steps - first_error - 1))
    return tuple(verdicts)


def processbench_from_record(record: Mapping[str, Any]) -> LabelledSteps:
    """ProcessBench: `id, problem, steps, label` (index of the first wrong step, -1 none)."""
    steps = _strings(record, "steps")
    label = record.get("label")
    if type(label) is not int:
        raise UserError(f"`label` must be the index of the first wrong step or -1, found {label!r}")
    return LabelledSteps(
        id=str(record.get("id", "")),
        question=_string(record, "problem"),
        steps=steps,
        verdicts=first_error_verdicts(label, len(steps)),
    )


def prm800k_from_record(
    record: Mapping[str, Any], neutral: Neutral = "unknown", id: str = ""
) -> list[LabelledSteps]:
    """PRM800K: one solution for every rated completion, each on the steps that were chosen before it.

    Raw records (`question.problem`, `label.steps[].completions[].rating`); the flat form of TRL
    (`prompt, completions, labels`) gives one solution. Solutions of one record share the prefix, so they become
    candidates of the same prefix. One whose last step states no answer was not ended there: it was rated so far.
    """
    if "completions" in record and "labels" in record:
        steps = _strings(record, "completions")
        labels = record["labels"]
        if not isinstance(labels, list):
            raise UserError(f"`labels` must be a list, found {type(labels).__name__}")
        return [
            LabelledSteps(
                id=id or str(record.get("id", "")),
                question=_string(record, "prompt"),
                steps=steps,
                verdicts=tuple(verdict_of(label, neutral) for label in labels),
                ended=bool(steps) and _STATED.search(steps[-1]) is not None,
            )
        ]
    question = record.get("question")
    label = record.get("label")
    if not isinstance(question, Mapping) or not isinstance(label, Mapping):
        raise UserError(
            "a PRM800K record needs `question` and `label` objects, or `prompt, completions, labels`"
        )
    problem = _string(question, "problem")
    gold = question.get("ground_truth_answer")
    prefix: list[str] = []
    prefix_verdicts: list[Verdict] = []
    solutions = []
    for depth, level in enumerate(_objects(label, "steps")):
        completions = _objects(level, "completions")
        for rank, completion in enumerate(completions):
            text = _string(completion, "text")
            solutions.append(
                LabelledSteps(
                    id=f"{id or problem[:40]}/{depth}.{rank}",
                    question=problem,
                    steps=(*prefix, text),
                    verdicts=(*prefix_verdicts, verdict_of(completion.get("rating"), neutral)),
                    gold=None if gold is None else str(gold),
                    ended=_ANSWER.search(text) is not None,
                )
            )
        chosen = level.get("chosen_completion")
        human = level.get("human_completion")
        if chosen is not None and (type(chosen) is not int or not 0 <= chosen < len(completions)):
            raise UserError(
                f"`chosen_completion` must be null or the index of one of {len(completions)} completions, "
                f"found {chosen!r}"
            )
        if chosen is not None:
            prefix.append(_string(completions[chosen], "text"))
            prefix_verdicts.append(verdict_of(completions[chosen].get("rating"), neutral))
        elif human is not None:
            prefix.append(_string(human if isinstance(human, Mapping) else {"text": human}, "text"))
            prefix_verdicts.append("correct")
        else:
            break
    return solutions


def math_shepherd_from_record(record: Mapping[str, Any], id: str = "") -> LabelledSteps:
    """Math-Shepherd: `input` (question, steps that end in ки) and `label` (the same with + or - for ки)."""
    text, labelled = _string(record, "input"), _string(record, "label")
    mark = "ки"
    first = re.search(r"Step 1\s*:", text)
    if first is None or mark not in text:
        raise UserError("a Math-Shepherd record needs an `input` with `Step 1:` and steps that end in ки")
    steps: list[str] = []
    verdicts: list[Verdict] = []
    at, shift = first.start(), 0  # the label's text is the input's, one character for the two of each mark
    while (found := text.find(mark, at)) >= 0:
        sign = labelled[found - shift : found - shift + 1]
        if sign not in ("+", "-"):
            raise UserError(f"`label` has {sign!r} where `input` has its mark number {len(steps) + 1}")
        steps.append(text[at:found].strip())
        verdicts.append(verdict_of(sign))
        at = found + len(mark)
        shift += len(mark) - 1
    return LabelledSteps(
        id=id or str(record.get("id", "")),
        question=text[: first.start()].strip(),
        steps=tuple(steps),
        verdicts=tuple(verdicts),
        ended=not text[at:].strip(),
    )


def read_labelled(path: str | Path, neutral: Neutral = "unknown") -> list[LabelledSteps]:
    """Solutions with labelled steps of a JSONL file: records of PRM800K, ProcessBench or Math-Shepherd, by their fields.

    Raises:
      UserError: naming file:line, also of a text that no tokenizer accepts; an id that was used before; no solution at all.
    """
    found: dict[str, LabelledSteps] = {}
    for number, (where, record) in enumerate(read_jsonl(path)):
        name = str(number if record.get("id") is None else record["id"])
        parse = functools.partial(_solutions, neutral=neutral, name=name)
        for solution in parse_at(where, parse, record):
            if solution.id in found:
                raise UserError(f"{where}: id {solution.id!r} was used before")
            found[solution.id] = solution
    if not found:
        raise UserError(f"{path}: no solution in it")
    return list(found.values())


def _solutions(record: Mapping[str, Any], neutral: Neutral, name: str) -> list[LabelledSteps]:
    if "input" in record:
        found = [math_shepherd_from_record(record, name)]
    elif "problem" in record:
        found = [dataclasses.replace(processbench_from_record(record), id=name)]
    else:
        found = prm800k_from_record(record, neutral, name)
    for solution in found:
        whole_text(solution.question, "the question")
        for index, step in enumerate(solution.steps):
            whole_text(step, f"step {index}")
    return found


def read_labels(path: str | Path, neutral: Neutral = "unknown") -> RecordedLabels:
    """Step labels of a JSONL file, by trace id.

    A line gives one step (`id` or `trace_id`, `step_index`, `verdict` or `label`), all steps of a trace (`id`,
    `verdicts` or `labels`), or the first wrong one (`id`, `steps`, `label`: ProcessBench). Trace records with
    verdicts in their `steps` do too.

    Raises:
      UserError: naming file:line; two different verdicts on one step.
    """
    found: dict[str, dict[int, Verdict]] = {}
    for where, record in read_jsonl(path):
        trace, verdicts = parse_at(where, lambda r: _label_line(r, neutral), record)
        known = found.setdefault(trace, {})
        for index, verdict in verdicts.items():
            if known.setdefault(index, verdict) != verdict:
                raise UserError(f"{where}: step {index} of {trace!r} was called {known[index]} before")
    return RecordedLabels(
        {
            trace: tuple(by_index.get(i, "unknown") for i in range(max(by_index, default=-1) + 1))
            for trace, by_index in found.items()
        }
    )


def _label_line(record: Mapping[str, Any], neutral: Neutral) -> tuple[str, dict[int, Verdict]]:
    name = record.get("trace_id", record.get("id"))
    if name is None:
        raise UserError("a label needs `id` or `trace_id`")
    index = record.get("step_index")
    if index is not None:
        if type(index) is not int or not 0 <= index < _MOST_STEPS:
            raise UserError(f"`step_index` must be 0 or more, and less than {_MOST_STEPS:,}, found {index!r}")
        if "verdict" not in record and "label" not in record:
            raise UserError("a label needs `verdict` or `label`")
        return str(name), {index: verdict_of(record.get("verdict", record.get("label")), neutral)}
    labels = record.get("verdicts", record.get("labels"))
    steps = record.get("steps")
    if isinstance(labels, list):
        verdicts: Sequence[Verdict] = [verdict_of(label, neutral) for label in labels]
    elif isinstance(steps, list) and all(isinstance(step, Mapping) for step in steps):
        verdicts = [verdict_of(step.get("verdict"), neutral) for step in steps]
    elif isinstance(steps, list) and type(record.get("label")) is int:
        verdicts = first_error_verdicts(record["label"], len(steps))
    else:
        raise UserError("labels need `verdicts`, `labels`, `steps` with verdicts, or `steps` and `label`")
    return str(name), dict(enumerate(verdicts))


def _string(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise UserError(f"`{field}` must be a string, found {type(value).__name__}")
    return value


def _strings(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = record.get(field)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"`{field}` must be a list of strings")
    return tuple(value)


def _objects(record: Mapping[str, Any], field: str) -> Sequence[Mapping[str, Any]]:
    value = record.get(field) or []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise UserError(f"`{field}` must be a list of objects")
    return value
