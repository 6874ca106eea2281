"""Monte-Carlo tree search over steps, judged by the policy itself: the kind of search that CaT is compared with."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.evaluation.strategies.base import Answer, Context, Settings, elected_index
from caspo_jax.evaluation.strategies.prefixes import Prefixes, next_logits, steps_of, sureness
from caspo_jax.models import decode, encode_prompt, token_bytes
from caspo_jax.models.tokenizer import without_thought
from caspo_jax.sampling import token_text
from caspo_jax.types import Question, Step

JUDGE = (
    "{question}\n\nProposed solution:\n{solution}\n\n"
    "Is the proposed solution correct in every step? Answer with one word, Yes or No."
)


@dataclasses.dataclass
class Node:
    """A state: the question and some whole steps."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # of its tokens
    ended: bool = False
    visits: int = 0
    total: float = 0.0  # sum of the rewards of the outputs below it
    children: dict[tuple[int, ...], Node] = dataclasses.field(default_factory=dict)

    def bound(self, parent_visits: int, exploration: float) -> float:
        """Mean reward + c sqrt(ln N / n)."""
        return self.total / self.visits + exploration * math.sqrt(math.log(parent_visits) / self.visits)


def select(root: Node, exploration: float) -> list[Node]:
    """From the root down to the first state without children, along the largest upper bounds."""
    path = [root]
    while path[-1].children:
        parent = path[-1]
        path.append(max(parent.children.values(), key=lambda n: n.bound(parent.visits, exploration)))
    return path


def mcts(context: Context, settings: Settings) -> list[Answer]:
    """Each round writes `width` outputs from the state that the upper bounds choose, and rewards the states they pass.

    An output is expansion and simulation in one: its first step is a child, the rest its rollout. The reward is the
    policy's own judgement of the whole output: its path confidence, or with `self_evaluation="prompt"` the probability
    of Yes against No when it is asked. The answer is the one with the largest sum of rewards over distinct outputs. A
    chosen state that is an end already is rewarded again at no cost.

    Source: Kocsis and Szepesvari 2006 (UCT); rollouts as children and self-evaluation as in RAP, Hao et al. 2023.
    """
    started = time.monotonic()
    sample = dataclasses.replace(settings.sample, num_samples=settings.width)
    prefixes = Prefixes.of(context, sample, len(context.questions))
    roots = [Node() for _ in context.questions]
    written: list[dict[tuple[int, ...], tuple[str | None, float]]] = [{} for _ in context.questions]
    tokens, calls, scored = (np.zeros(len(roots), int) for _ in range(3))
    spelled = token_bytes(context.tokenizer, context.model.config.vocab_size)
    answers = []
    sizes = settings.sizes(settings.iterations)
    for round_ in range(1, settings.iterations + 1):
        paths = [select(root, settings.exploration) for root in roots]
        wanted = []
        for q, path in enumerate(paths):
            if path[-1].ended:
                _reward(path, path[-1].total / path[-1].visits)
            else:
                wanted.append((q, path[-1].ids, f"round{round_}"))
        found = prefixes.extend(wanted, sample)
        outputs, owners = [], []
        for (q, ids, _), traces in zip(wanted, found):
            if not traces:
                paths[q][-1].ended = True
            longest = 0
            for trace in traces:
                room = sample.max_new_tokens - len(ids)
                rest = trace.token_ids[:room]
                tokens[q] += len(rest)
                longest = max(longest, len(rest))
                done = trace.finish_reason in ("eos", "stop") and len(rest) == len(trace.token_ids)
                whole = (*ids, *rest)
                logprobs = (*paths[q][-1].logprobs, *(trace.logprob or ())[:room])
                steps = steps_of(whole, logprobs, spelled, sample.step_delimiter)
                outputs.append(_Output(q, whole, logprobs, steps, done))
                owners.append(paths[q])
            calls[q] += 1 + longest
        rewards, reread = _rewards(context, settings, outputs, spelled)
        for output, path, reward, more in zip(outputs, owners, rewards, reread):
            # An output that comes up twice is one output: it does not vote twice.
            written[output.question][output.ids] = (context.extract(output.text(spelled)), reward)
            scored[output.question] += more
            child = output.up_to(len(path))  # one step more than its parent: the root has none
            _reward([*path, path[-1].children.setdefault(child.ids, child)], reward)
        if round_ in sizes:
            seconds = (time.monotonic() - started) / len(roots)
            for q, question in enumerate(context.questions):
                answer = _best(list(written[q].values()), context)
                cost = int(tokens[q]), int(calls[q]), int(scored[q]), 0, seconds
                answers.append(Answer("mcts", str(round_ * settings.width), question.id, answer, None, *cost))
    return answers


@dataclasses.dataclass(frozen=True)
class _Output:
    question: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    steps: tuple[Step, ...]
    finished: bool

    def text(self, spelled: Sequence[bytes]) -> str:
        return token_text(spelled, self.ids)

    def up_to(self, steps: int) -> Node:
        """The state after so many steps, or at the end where there are fewer."""
        end = self.steps[steps - 1].token_end if steps <= len(self.steps) else len(self.ids)
        return Node(self.ids[:end], self.logprobs[:end], ended=end == len(self.ids))


def _reward(path: Sequence[Node], reward: float) -> None:
    for node in path:
        node.visits += 1
        node.total += reward


def _best(written: Sequence[tuple[str | None, float]], context: Context) -> str | None:
    answers = [answer for answer, _ in written]
    winner = elected_index(answers, [reward for _, reward in written], context.same)
    return None if winner is None else answers[winner]


def _rewards(
    context: Context,
    settings: Settings,
    outputs: Sequence[_Output],
    spelled: Sequence[bytes],
) -> tuple[list[float], list[int]]:
    """Reward in [0, 1] of each output, 0 for one without an end, and the tokens that were read to judge it."""
    if settings.self_evaluation == "confidence":
        return [sureness(o.steps) if o.finished else 0.0 for o in outputs], [0] * len(outputs)
    if settings.self_evaluation != "prompt":
        raise UserError(f"self_evaluation={settings.self_evaluation!r}: choose from confidence, prompt")
    prompts = []
    for output in outputs:
        asked = context.questions[output.question]
        said = asked.question or asked.prompt or decode(context.tokenizer, asked.prompt_ids or ())
        text = JUDGE.format(question=said, solution=output.text(spelled))
        prompt = encode_prompt(context.tokenizer, Question(id="judge", question=text))
        prompts.append(without_thought(context.tokenizer, prompt))
    limit = context.model.config.context
    fits = [len(p) <= limit for p in prompts]
    yes = probability_of_yes(context, [p for p, ok in zip(prompts, fits) if ok])
    rewards = iter(yes)
    return (
        [next(rewards) * o.finished if ok else 0.0 for o, ok in zip(outputs, fits)],
        [len(p) if ok else 0 for p, ok in zip(prompts, fits)],
    )


def probability_of_yes(context: Context, prompts: Sequence[Sequence[int]]) -> list[float]:
    """P(Yes) / (P(Yes) + P(No)) as the first token after each prompt."""
    yes, no = (context.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    gap = next_logits(context.model, prompts, lambda logits: logits[:, no] - logits[:, yes])
    return (1.0 / (1.0 + np.exp(np.clip(gap, -700, 700)))).tolist()
