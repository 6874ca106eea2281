"""The settings of `evaluate`: from flags, into the manifest, and back from the file where they were chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation.strategies import Settings
from caspo_jax.store import hash_path
from caspo_jax.training.stages import Policy
from caspo_jax.training.stages.policy import questions_digest
from caspo_jax.types import Question
from experiments import common, verifiers

FLAGS = flags.FLAGS
MOST_TOKENS = 1 << 23  # of the samples of a group: about a gigabyte on the host
FEWEST, MOST = 16, 256  # questions of a group, by default


def base_settings(policy: Policy, questions: Sequence[Question]) -> Settings:
    """The flags as settings of all strategies."""
    if FLAGS.temperature == 0:
        raise UserError(
            "--temperature=0: this is what the other strategies draw with, and greedy needs none: leave the flag out"
        )
    sample = common.sample_config(
        policy, questions, num_samples=1, **default_max_new_tokens(policy, questions)
    )
    judge = FLAGS.self_evaluation
    if judge == "auto":
        # The tiny policies have a template too, but nobody taught them to judge.
        asks = getattr(policy.tokenizer, "chat_template", None) and not policy.settings.get("task")
        judge = "prompt" if asks else "confidence"
    return Settings(
        sample=sample,
        samples=FLAGS.num_samples,
        time_votes=FLAGS.time_votes,
        window=max(Settings.window, sample.max_new_tokens // 16),
        warm_up=min(16, max(1, FLAGS.num_samples // 2)),
        cat=common.cat_config(policy, sample),
        cat_sizes=cat_sizes(),
        self_evaluation=judge,
    )


def default_max_new_tokens(policy: Policy, questions: Sequence[Question]) -> dict[str, int]:
    """Without --max_new_tokens: half of what the longest prompt leaves of the context, 1,024 at most; says how many.

    Half, because strategies that go step by step read a prefix as long as an output and write another behind it. And the
    questions that settings are chosen on may be longer than these.
    """
    if FLAGS.max_new_tokens is not None:
        return {}
    room = common.room(policy, questions)
    most = max(1, min(common.MOST_NEW_TOKENS, room // 2))
    common.say(
        f"--max_new_tokens={most}, as none is given: half of the {room:,} tokens that the longest prompt leaves of the "
        "context, 1,024 at most"
    )
    return {"max_new_tokens": most}


def group_size(settings: Settings) -> int:
    """Questions decoded together: --group, or as many as hold MOST_TOKENS of samples.

    A group is what a killed run loses, and its traces are held at once.
    """
    if FLAGS.group is not None:
        return FLAGS.group
    return min(MOST, max(FEWEST, MOST_TOKENS // (settings.samples * settings.sample.max_new_tokens)))


def say_untuned(benchmarks: Collection[str], settings: Settings, strategies: Collection[str]) -> None:
    """Says of these benchmarks that their settings are the flags' although --tune asks for questions to choose them on."""
    if FLAGS.tune == 0 or not benchmarks:
        return
    unpruned = "cat" in strategies and settings.cat.threshold == 0
    common.say(
        f"{', '.join(benchmarks)}: without --tune_input temperatures, thresholds and exponents are those of the flags"
        + ("; at --threshold=0 cat never prunes" if unpruned else "")
    )


def cat_sizes() -> tuple[int, ...]:
    """The numbers of --cat_sizes, in order, each once."""
    try:
        sizes = sorted({int(size) for size in FLAGS.cat_sizes})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1:
        raise UserError(f"--cat_sizes={','.join(FLAGS.cat_sizes)}: give numbers of branches such as 2,4,8")
    return tuple(sizes)


def run_settings(
    policy: Policy,
    strategies: Sequence[str],
    settings: Settings,
    questions: Mapping[str, Sequence[Question]],
) -> dict[str, Any]:
    """What decides the answers, for the manifest; `questions` by benchmark."""
    return common.instruction_setting() | {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "strategies": list(strategies),
        "settings": dataclasses.asdict(settings),
        "questions": {name: questions_digest(group) for name, group in questions.items()},
        "seed": FLAGS.seed,
        "group": group_size(settings),
        "repeats": FLAGS.repeats,
        "tune": FLAGS.tune,
        "tune_input": hash_path(FLAGS.tune_input) if FLAGS.tune_input else None,
        # Benchmarks with a name read answers in their own way.
        "answers": verifiers.answer_kind(policy) if "input" in questions else None,
        "batch_size": FLAGS.batch_size,
    }


def restored(base: Any, values: dict[str, Any]) -> Any:
    """A (nested) settings dataclass from its JSON form."""
    changes = {}
    for field in dataclasses.fields(base):
        before, value = getattr(base, field.name), values[field.name]
        if dataclasses.is_dataclass(before):
            value = restored(before, value)
        elif isinstance(before, tuple):
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        changes[field.name] = value
    return dataclasses.replace(base, **changes)
