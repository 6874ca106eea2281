"""What `train_tiny` learns from: solutions and exercises that a task writes, repeated random tokens, recorded traces."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax.models.tokenizer import encode_prompt
from caspo_jax.padding import multiple
from caspo_jax.tasks.tokenizer import build_tokenizer
from caspo_jax.types import Question

Row = tuple[list[int], list[bool]]  # token ids, and which of them are learned


@dataclasses.dataclass(frozen=True)
class Text:
    """The text of a stage."""

    task: Any
    second: bool  # written as the base policy writes, slips and all; the first stage's is right and shows its working
    drill: float  # share of rows that are exercises
    copying: int  # batches of repeated random tokens, before all others
    batch_size: int
    seed: int
    traces: Sequence[Any] = ()  # if there are any, their outputs are learned instead of what the task writes

    @property
    def mix(self) -> Mapping[str, float]:
        """Share of each phrasing."""
        return dict(self.task.mix if self.second else self.task.basics)

    def tokenizer(self) -> Any:
        """A tokenizer made from solutions in this stage's phrasings."""
        rng = random.Random(f"{self.task.name}/tokenizer")
        corpus: list[str] = []
        for problem, _ in zip(self.task.problems("pretrain", seed=0), range(4000), strict=False):
            corpus += [problem.text, "\n\n".join(self.task.solve(problem, rng, self.mix))]
        corpus += [str(number) for number in range(100)] * 3
        return build_tokenizer(corpus)

    def batches(self, tokenizer: Any) -> Iterator[tuple[Any, Any]]:
        """Token ids [B, T] int32 and the mask [B, T] bool of the learned tokens, rows of like length together; endless."""
        rng = random.Random(f"{self.task.name}/text/{self.seed}" + ("/mix" if self.second else ""))
        solutions = (p for p, _ in zip(self.task.problems("pretrain", 0), range(500), strict=False))
        used = sorted({i for p in solutions for i in tokenizer(p.text)["input_ids"]})
        for _ in range(self.copying):
            yield self._copies(rng, used)
        source = self._recorded() if self.traces else self._written(tokenizer, rng)
        while True:
            rows = sorted(itertools.islice(source, self.batch_size * 32), key=lambda row: len(row[0]))
            groups = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
            rng.shuffle(groups)
            yield from map(_padded, groups)

    def _copies(self, rng: random.Random, used: list[int]) -> tuple[Any, Any]:
        """Rows of random tokens repeated with a random period; the first period is not learned.

        Attention that finds what followed the same token before forms in minutes here, in hours from solutions alone.
        """
        ids = np.zeros((self.batch_size, 64), np.int32)
        mask = np.ones(ids.shape, bool)
        for i in range(len(ids)):
            period = rng.randint(8, 23)
            ids[i] = np.resize(rng.sample(used, period), ids.shape[1])
            mask[i, : period + 1] = False
        return ids, mask

    def _written(self, tokenizer: Any, rng: random.Random) -> Iterator[Row]:
        """Solutions of new problems, and now and then an exercise."""
        for problem in self.task.problems("pretrain", seed=self.seed + (2 if self.second else 1)):
            question: str | None = problem.text
            solution = self.task.solve(problem, rng, self.mix, self.task.slips if self.second else None)
            lines: list[tuple[str, ...]] = [("", "\n\n".join(solution))]
            if rng.random() < self.drill:
                question, lines = self.task.drill(rng, tuple(self.mix))
            yield _row(tokenizer, question, lines)

    def _recorded(self) -> Iterator[Row]:
        """The outputs of traces behind their prompts, over and over, in a new order each time."""
        rng = random.Random(f"traces/{self.seed}")
        while True:
            for trace in rng.sample(self.traces, len(self.traces)):
                prompt, output = list(trace.prompt_ids), list(trace.token_ids)
                yield [*prompt, *output], [False] * len(prompt) + [True] * len(output)


def _row(tokenizer: Any, question: str | None, lines: list[tuple[str, ...]]) -> Row:
    """A prompt, if any, and lines whose parts are by turns given and learned: nobody could foretell a prompt or operand."""
    ids = [tokenizer.pad_token_id]
    if question:
        ids = encode_prompt(tokenizer, Question(id="", question=question))
    learn = [False] * len(ids)
    for i, line in enumerate(lines):
        for k, part in enumerate(line):
            text = f"\n\n{part}" if i and not k else part
            tokens = tokenizer(text)["input_ids"] if text else []
            ids, learn = [*ids, *tokens], [*learn, *([k % 2 == 1] * len(tokens))]
    return [*ids, tokenizer.eos_token_id], [*learn, True]


def _padded(rows: list[Row]) -> tuple[Any, Any]:
    """Token ids [B, T] and the mask [B, T] of the learned tokens; T is a multiple of 24, so that few shapes are compiled."""
    length = multiple(max(len(ids) for ids, _ in rows), 24)
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, (tokens, learn) in enumerate(rows):
        ids[i, : len(tokens)] = tokens
        mask[i, : len(learn)] = learn
    return ids, mask
