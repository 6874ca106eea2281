"""Which verifier a program uses, by flag, and what it is checked against before anything is begun."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from caspo_jax import steps
from caspo_jax.errors import UserError
from caspo_jax.models import encode_prompt
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.steps import Verifier
from caspo_jax.steps.rollouts import Generate
from caspo_jax.training.stages import Policy
from caspo_jax.training.stages.annotate import check_confidence as check_name
from caspo_jax.types import Equal, Extract, Question, Trace
from experiments import common

FLAGS = flags.FLAGS
_OWNERS = {
    "labels": "labels",
    "judge": "judge",
    "judge_prompt": "judge",
    "rollouts": "rollouts",
    "rollout_threshold": "rollouts",
}
ONE_CLASS = 2048  # prompt tokens up to which questions are decoded together, however different: each class is compiled
NAMES = ("auto", "exact", "gold", "equations", "labels", "rollouts", "judge")


def define_flags() -> None:
    """Flags of every program that judges steps."""
    flags.DEFINE_enum(
        "verifier",
        "auto",
        NAMES,
        "who judges steps. exact: the embedded task's checker; gold: last steps by the gold answer, others are unknown; "
        "equations: the arithmetic that a step states; labels: recorded verdicts (--labels); rollouts: do continuations reach "
        "the gold answer?; judge: a local checkpoint (--judge). auto: exact for a tiny policy, else equations",
    )
    flags.DEFINE_string("labels", None, "JSONL of recorded verdicts, for --verifier=labels")
    flags.DEFINE_string("judge", None, "checkpoint that judges, for --verifier=judge")
    flags.DEFINE_string("judge_prompt", None, "text file with the judge's prompt; default: the packaged one")
    flags.DEFINE_integer("rollouts", 8, "continuations a step, for --verifier=rollouts", lower_bound=1)
    flags.DEFINE_float(
        "rollout_threshold", 0.0, "a step is right if more than this share reaches the gold answer"
    )


def needs_gold(policy: Policy | None) -> bool:
    """Does the chosen verifier read gold answers?"""
    return choose(policy) in ("gold", "rollouts")


def check_confidence() -> None:
    """Refuses a --confidence that cannot be computed from traces: before a policy is loaded."""
    if FLAGS.confidence is not None:
        check_name(FLAGS.confidence, "--confidence")


def trace_confidence(policy: Any) -> str:
    """The step confidence of traces: the flag's, else that of the policy's caspo.json, else entropy.

    Raises:
      UserError: traces do not hold what it is computed from.
    """
    name = FLAGS.confidence or policy.settings.get("confidence", "entropy")
    check_name(name, "--confidence" if FLAGS.confidence else f"{policy.path}/caspo.json: confidence")
    return name


def check_golds(traces: Iterable[Trace]) -> None:
    """Refuses traces of --input without the gold answer that verifiers such as `gold` read."""
    without = next((t.id for t in traces if t.gold is None), None)
    if without is not None:
        raise UserError(f"{FLAGS.input}: trace {without!r} has no gold answer, which this verifier needs")


def answer_kind(policy: Policy) -> str:
    """What manifests call the functions of `common.answer_functions`."""
    return FLAGS.answers or ("task" if policy.settings.get("task") else "math")


def choose(policy: Policy | None) -> str:
    """The verifier's name after `auto` is resolved."""
    if FLAGS.verifier != "auto":
        return FLAGS.verifier
    return "exact" if policy is not None and policy.settings.get("task") else "equations"


def check(policy: Policy) -> str:
    """The verifier's name, once it has what it needs: found out before a round samples, not after.

    Raises:
      UserError: a verifier without what it needs, or a flag that goes with another one.
    """
    name = choose(policy)
    for flag, owner in _OWNERS.items():
        if FLAGS[flag].present and name != owner:
            raise UserError(f"--{flag} goes with --verifier={owner}, not {name}")
    if name == "exact":
        common.task_of(policy, "--verifier=exact")
    if name == "labels" and not FLAGS.labels:
        raise UserError("--verifier=labels needs --labels=FILE")
    if name == "judge" and not FLAGS.judge:
        raise UserError("--verifier=judge needs --judge=CHECKPOINT")
    for flag in ("labels", "judge_prompt"):
        path = getattr(FLAGS, flag)
        if path and not Path(path).is_file():
            raise UserError(f"--{flag}={path}: no such file")
    return name


def build(policy: Policy, extract: Extract, equal: Equal) -> Verifier:
    """The verifier of the flags; raises as `check` does."""
    name = check(policy)
    if name == "exact":
        return common.task_of(policy, "--verifier=exact").verifier()
    if name == "gold":
        return steps.GoldAnswer(extract=extract, equal=equal)
    if name == "equations":
        return steps.StatedEquations()
    if name == "labels":
        return steps.read_labels(FLAGS.labels)
    if name == "rollouts":
        return steps.Rollouts(
            generate=generate_with(policy, temperature=1.0),
            n=FLAGS.rollouts,
            threshold=FLAGS.rollout_threshold,
            extract=extract,
            equal=equal,
            delimiter=common.step_delimiter(policy),
            decoding={**decoding(policy), "seed": FLAGS.seed},
        )
    judge = common.load_policy(FLAGS.judge)
    template = steps.load_prompt(FLAGS.judge_prompt) if FLAGS.judge_prompt else steps.load_prompt()
    return steps.LocalJudge(
        generate=generate_with(judge, temperature=0.0), template=template, decoding=decoding(judge)
    )


def decoding(policy: Policy) -> dict[str, Any]:
    """What decides the tokens of `generate_with` beside the seed, for manifests."""
    return {"checkpoint": policy.hash, "dtype": str(policy.model.dtype), "batch_size": FLAGS.batch_size}


def generate_with(policy: Policy, temperature: float) -> Generate:
    """`(questions, n) -> traces` on a policy, each of as many new tokens as its context leaves, 1,024 at most.

    A question's outputs do not depend on the questions beside it; one that fills the context gets empty ones, cut off.
    """

    def call(questions: Sequence[Question], n: int) -> list[Trace]:
        # Encoded once: thousands of prompts that hold whole prefixes take minutes.
        questions = [
            dataclasses.replace(q, prompt_ids=tuple(encode_prompt(policy.tokenizer, q))) for q in questions
        ]
        alike: dict[tuple[int, int], list[int]] = {}
        for i, question in enumerate(questions):
            length = len(question.prompt_ids or ())
            room = new_tokens(policy.model.config.context - length)
            alike.setdefault((room, prompt_class(length)), []).append(i)
        found: list[Sequence[Trace]] = [()] * len(questions)
        for (room, _), rows in alike.items():
            asked = [questions[i] for i in rows]
            if room:
                config = SampleConfig(max_new_tokens=room, temperature=temperature, num_samples=n)
                key, batch = jax.random.key(FLAGS.seed), FLAGS.batch_size
                traces = generate(policy.model, policy.tokenizer, asked, config, key, batch_size=batch)
            else:
                traces = [
                    Trace(
                        id=f"{q.id}#{k}",
                        question=q.question,
                        gold=q.gold,
                        prompt=q.prompt,
                        prompt_ids=(),
                        token_ids=(),
                        text="",
                        finish_reason="length",
                    )
                    for q in asked
                    for k in range(n)
                ]
            for at, i in enumerate(rows):
                found[i] = traces[at * n : (at + 1) * n]
        return [trace for group in found for trace in group]

    return call


def prompt_class(length: int) -> int:
    """The class of a prompt's length: one for the short, then one to a doubling.

    What is decoded together has room for its longest prompt in every row. The prefixes of a trace have all lengths up to its
    own: as wide as the longest of them, they are three times the work.
    """
    return max(ONE_CLASS, 1 << max(0, length - 1).bit_length())


def new_tokens(left: int) -> int:
    """Of what the context leaves a power of two, at most 1,024: few programs to compile; 0 where nothing is left."""
    return 0 if left < 1 else min(common.MOST_NEW_TOKENS, 2 ** (left.bit_length() - 1))
