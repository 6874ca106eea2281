"""Which verifier a program uses, by flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.errors import UserError
from experiments import common

FLAGS = flags.FLAGS
_OWNERS = {
    "labels": "labels",
    "judge": "judge",
    "judge_prompt": "judge",
    "rollouts": "rollouts",
    "rollout_threshold": "rollouts",
}
NAMES = ("auto", "exact", "gold", "equations", "labels", "rollouts", "judge")


def define_flags() -> None:
    """Flags of every program that judges steps."""
    flags.DEFINE_enum(
        "verifier",
        "auto",
        NAMES,
        "who judges steps. exact: the embedded task's checker; gold: the final answer, for final steps; equations: stated "
        "arithmetic; labels: recorded verdicts (--labels); rollouts: continuations that reach the gold answer; judge: a "
        "local checkpoint (--judge). auto: exact for a tiny policy, else equations",
    )
    flags.DEFINE_string("labels", None, "JSONL of recorded verdicts, for --verifier=labels")
    flags.DEFINE_string("judge", None, "checkpoint that judges, for --verifier=judge")
    flags.DEFINE_string("judge_prompt", None, "text file with the judge's prompt; default: the packaged one")
    flags.DEFINE_integer("rollouts", 8, "continuations a step, for --verifier=rollouts", lower_bound=1)
    flags.DEFINE_float(
        "rollout_threshold", 0.0, "a step is right if more than this share reaches the gold answer"
    )


def needs_gold(policy: Any) -> bool:
    """Does the chosen verifier read gold answers?"""
    return choose(policy) in ("gold", "rollouts")


def choose(policy: Any) -> str:
    """The verifier's name after `auto` is resolved."""
    if FLAGS.verifier != "auto":
        return FLAGS.verifier
    return "exact" if policy.settings.get("task") else "equations"


def check(policy: Any) -> str:
    """The verifier's name, once it has what it needs: found out before a round samples, not after.

    Raises:
      UserError: a verifier without what it needs, or a flag that goes with another one.
    """
    name = choose(policy)
    for flag, owner in _OWNERS.items():
        if FLAGS[flag].present and name != owner:
            raise UserError(f"--{flag} goes with --verifier={owner}, not {name}")
    if name == "exact" and not policy.settings.get("task"):
        raise UserError(
            "--verifier=exact needs the tiny policy of an embedded task (caspo.json names its task)"
        )
    if name == "labels" and not FLAGS.labels:
        raise UserError("--verifier=labels needs --labels=FILE")
    if name == "judge" and not FLAGS.judge:
        raise UserError("--verifier=judge needs --judge=CHECKPOINT")
    for flag in ("labels", "judge_prompt"):
        path = getattr(FLAGS, flag)
        if path and not Path(path).is_file():
            raise UserError(f"--{flag}={path}: no such file")
    return name


def build(policy: Any, extract: Any, equal: Any, delimiter: str) -> Any:
    """The verifier of the flags; raises as `check` does."""
    from caspo_jax import steps

    name = check(policy)
    if name == "exact":
        from caspo_jax.tasks import get_task

        return get_task(policy.settings["task"]).verifier()
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
        )
    from caspo_jax.training.stages import Policy

    judge = Policy.load(FLAGS.judge, FLAGS.dtype, common.mesh())
    template = steps.load_prompt(FLAGS.judge_prompt) if FLAGS.judge_prompt else steps.load_prompt()
    return steps.LocalJudge(generate=generate_with(judge, temperature=0.0), template=template)


def generate_with(policy: Any, temperature: float) -> Any:
    """`(questions, n) -> traces` on a policy, with as many new tokens as the context leaves, 1,024 at most."""
    import jax

    from caspo_jax.models import encode_prompt
    from caspo_jax.sampling import SampleConfig, generate

    def call(questions: Any, n: int) -> Any:
        longest = max(len(encode_prompt(policy.tokenizer, q)) for q in questions)
        room = policy.model.config.max_position_embeddings - longest
        config = SampleConfig(
            max_new_tokens=max(1, min(1024, room)),
            temperature=temperature,
            num_samples=n,
            step_delimiter=common.step_delimiter(policy.settings),
        )
        return generate(
            policy.model,
            policy.tokenizer,
            questions,
            config,
            jax.random.key(FLAGS.seed),
            batch_size=FLAGS.batch_size,
        )

    return call
