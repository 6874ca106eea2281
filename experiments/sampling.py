"""Questions to a file of traces, as the flags say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.sampling import CatConfig, SampleConfig
from caspo_jax.training.stages import Policy, sample_stage
from caspo_jax.types import Question
from experiments import common, verifiers

FLAGS = flags.FLAGS


def sample(
    policy: Policy,
    questions: Sequence[Question],
    output: str | Path,
    config: SampleConfig | CatConfig,
    *,
    label: str,
    **options: Any,
) -> None:
    """`sample_stage` behind a progress bar called `label`, answers read and compared as by `answer_functions`.

    `options` are what the flags do not decide: strategy, trees, answers, token_stats.
    """
    extract, equal = common.answer_functions(policy)
    with common.Progress(len(questions), label) as progress:
        sample_stage(
            policy,
            questions,
            output,
            config,
            seed=FLAGS.seed,
            batch_size=FLAGS.batch_size,
            extract=extract,
            equal=equal,
            answer_kind=verifiers.answer_kind(policy),
            instruction=common.instruction(),
            overwrite=FLAGS.overwrite,
            progress=progress.reach,
            **options,
        )
