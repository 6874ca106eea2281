"""What every strategy is given and gives back."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from caspo_jax.sampling import CatConfig, SampleConfig, merge_answers
from caspo_jax.sampling.votes import heaviest, total_weights
from caspo_jax.types import Question


@dataclasses.dataclass(frozen=True)
class Context:
    """A policy, questions, and how their answers are read."""

    model: Any
    tokenizer: Any
    questions: Sequence[Question]
    key: jax.Array  # one for all strategies: sample i of a question and branch i of its search draw alike
    extract: Callable[[str], str | None]  # text -> answer
    score: Callable[[str, Question], bool]  # (answer, question) -> is it right?
    same: Callable[[str, str], bool]  # are two answers one? for votes
    batch_size: int | None = None  # rows on the device at once
    keep: Callable[..., None] | None = None  # (name, traces or searches, how these vote): for the report
    progress: Callable[[int, int], None] | None = None  # (done, in all) of what is being decoded
    judges: int = 1  # answers scored at once, in threads: what runs programs waits for them
    _known: dict[tuple[str, str], bool] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def right(self, answers: Sequence[str | None], questions: Sequence[Question]) -> list[bool]:
        """Is each of these answers, if any, right? An answer to a question is scored once, however many strategies give it."""
        asked = {(q.id, a): (a, q) for a, q in zip(answers, questions, strict=True) if a is not None}
        new = [key for key in asked if key not in self._known]

        def score(key: tuple[str, str]) -> bool:
            return bool(self.score(*asked[key]))

        if self.judges == 1:
            self._known.update(zip(new, map(score, new)))
        else:
            # After an error or Ctrl-C `map` takes back what has not begun.
            with ThreadPoolExecutor(self.judges) as pool:
                self._known.update(zip(new, pool.map(score, new)))
        return [a is not None and self._known[q.id, a] for a, q in zip(answers, questions)]

    def show(self, name: str, found: Sequence[Any], **facts: Any) -> None:
        """Hand traces, or results of searches, to whoever keeps them; `facts` say how searches voted (vote, gamma)."""
        if self.keep is not None:
            self.keep(name, found, **facts)


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to one question, and what it cost."""

    strategy: str
    size: str  # how much it may spend, in the strategy's own unit
    question: str
    answer: str | None
    correct: bool | None  # None until it is scored (`graded`)
    tokens: int  # decoded, over all branches
    calls: int  # forward passes one after another: the prompt, then one a token of the longest branch
    scored: int = 0  # tokens that were read again to be judged
    index: int = 0  # of several answers of equal standing
    seconds: float | None = None  # of decoding, a question; None where it was not decoded by itself
    # Of the output, or a search's surest path, with this answer; None of votes.
    path_confidence: float | None = None


def elected_index(
    answers: Sequence[str | None], weights: Sequence[float], same: Callable[[str, str], bool]
) -> int | None:
    """Index of the elected answer: in the heaviest class, the first of the heaviest spelling; None without an answer.

    Args:
      answers: None does not vote.
      weights: of each answer.
      same: (answer, answer) -> do they mean the same? Asked both ways.
    """
    classes = merge_answers(answers, same)
    voters = [i for i, kind in enumerate(classes) if kind is not None]
    if not voters:
        return None
    winner = heaviest(total_weights((classes[i], float(weights[i])) for i in voters))
    spellings = ((answers.index(answers[i]), float(weights[i])) for i in voters if classes[i] == winner)
    return heaviest(total_weights(spellings))


def graded(context: Context, answers: Sequence[Answer]) -> list[Answer]:
    """The answers with `correct`: not while they are decoded, whose time is reported."""
    by_id = {question.id: question for question in context.questions}
    right = context.right([a.answer for a in answers], [by_id[a.question] for a in answers])
    return [dataclasses.replace(a, correct=r) for a, r in zip(answers, right, strict=True)]


def timed(run: Callable[[], list[Answer]], questions: int) -> list[Answer]:
    """The answers of `run`, each with the seconds a question that it took."""
    started = time.monotonic()
    answers = run()
    seconds = (time.monotonic() - started) / questions
    return [dataclasses.replace(answer, seconds=seconds) for answer in answers]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of all strategies; chosen on other questions than those they are reported on."""

    sample: SampleConfig = dataclasses.field(default_factory=lambda: SampleConfig(temperature=0.7))
    samples: int = 16  # size of the pool behind sampling and the votes
    time_votes: bool = False  # draw the smaller pools again, to know what votes over them take
    gamma: float = 25.0  # exponent of the confidence vote
    borda_power: float = 0.7  # Borda votes (n - rank + 1)^p of self-certainty
    window: int = 16  # tokens of DeepConf's sliding window (2,048 in the paper, for outputs of some 32,000)
    keep: float = 0.9  # DeepConf: share of the traces kept (0.1 or 0.9 in the paper)
    warm_up: int = 8  # DeepConf online: traces that set the bar (16 in the paper, of 512)
    consensus: float = 0.95  # DeepConf online: no more traces once an answer holds this share
    kappa_gate: int = 32  # KAPPA: tokens over which the branches are pruned to one
    first_tokens: int = 8  # CoT-decoding: first tokens tried (10 in the paper)
    cat: CatConfig = dataclasses.field(
        default_factory=lambda: CatConfig(sample=SampleConfig(temperature=0.7))
    )
    cat_sizes: tuple[int, ...] = (2, 4, 8)  # branches K
    paper_threshold: float = 0.8  # of CaT as published: entropy, path confidence
    beams: tuple[tuple[int, int], ...] = ((2, 2), (4, 4))  # (beams kept, steps sampled a beam)
    most_steps: int = 1024  # beam search gives up beyond this; outputs mostly run out of tokens before
    iterations: int = 4  # MCTS rounds
    width: int = 4  # MCTS rollouts a round
    exploration: float = 1.0  # MCTS: c of the upper confidence bound
    self_evaluation: str = "confidence"  # MCTS reward: confidence, or prompt (the policy is asked)

    def sizes(self, most: int) -> tuple[int, ...]:
        """1, 2, 4, ... and `most`."""
        powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
        return (*powers, most)

    def vote_sizes(self, most: int) -> tuple[int, ...]:
        """2, 4, ... and `most`; a vote of one only where there is one."""
        return self.sizes(most)[1:] or (most,)
