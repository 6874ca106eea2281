"""Iterative CASPO: each round samples, annotates, pairs, trains and exports; round k reads the policy of round k-1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.locks import held
from caspo_jax.outputs import manifest_path
from caspo_jax.preferences import PairConfig
from caspo_jax.sampling import CatConfig, SampleConfig
from caspo_jax.steps import Verifier
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.stages import (
    Policy,
    annotate_stage,
    export_stage,
    pairs_stage,
    sample_stage,
    train_stage,
)
from caspo_jax.training.stages.annotate import check_confidence
from caspo_jax.types import Equal, Extract, Question

# (stage, round) -> progress callback of the stage
Watch = Callable[[str, int], Callable[..., None] | None]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of every round."""

    sample: SampleConfig | CatConfig  # independent outputs, or an exploration whose siblings share prefixes
    pairs: PairConfig
    train: TrainConfig
    batch_size: int | None = None  # rows decoded together; None: by memory
    confidence: str = "entropy"  # step confidence that pairs are chosen by
    max_step_tokens: int = 256  # longest competitor
    dtype: str | None = None
    mesh: Any = None
    reference_cache: str | None = None  # folder of reference log-probs that runs share; None: each run's own
    instruction: str | None = None  # what the questions end with, for the readers of manifests
    temperatures: tuple[float, ...] = ()  # of round 1, 2, ...; the last one stays; empty: the sample's own


def run_rounds(
    policy: str | Path,
    questions: Callable[[int], Sequence[Question]] | Sequence[Question],
    out_dir: str | Path,
    recipe: Recipe,
    *,
    verifier: Callable[[Policy], Verifier],
    extract: Extract,
    equal: Equal,
    answer_kind: str | None = None,
    rounds: int = 3,
    seed: int = 0,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> list[Path]:
    """All rounds, from and to files; killed anywhere, the same call goes on and ends with the same files.

    Args:
      policy: the base.
      questions: those of every round, or round (from 1) -> its questions.
      out_dir: `round_k/` holds traces, annotated traces, pairs, the training run and the exported policy.
      recipe: settings of every round.
      verifier: policy of the round -> who judges its steps (some verifiers sample from the policy).
      extract: text -> answer.
      equal: (gold, answer) -> bool.
      answer_kind: what manifests call the two.
      rounds: how many.
      seed: of sampling, of the choice of pairs and of the data order.
      overwrite: redo stages that were made with other settings.
      watch: (stage, round) -> progress callback.

    Returns:
      The policy folders of round 1, 2, ...

    Raises:
      UserError: settings that cannot work, a stage that refuses its input or finds its output made with other settings;
        another process runs these rounds.
      Interrupted: SIGTERM, Ctrl-C or a preemption notice came while training; a checkpoint is written.

    Source: CASPO, arXiv 2605.07353 (iterative DPO; the reference is the round's start).
    """
    check_confidence(recipe.confidence)
    samples = [at_round(recipe, k) for k in range(1, rounds + 1)]  # all of them before the first is drawn
    # Pairs are drawn by the run's own seed in every round: each round has other candidates anyway.
    recipe = dataclasses.replace(
        recipe, pairs=dataclasses.replace(recipe.pairs, seed=recipe.pairs.seed + seed)
    )
    folders: list[Path] = []
    with held(manifest_path(out_dir, folder=True)):  # also between two stages
        for k, sample in enumerate(samples, start=1):
            policy = _round(
                policy,
                questions(k) if callable(questions) else questions,
                Path(out_dir) / f"round_{k}",
                recipe,
                sample,
                verifier=verifier,
                extract=extract,
                equal=equal,
                answer_kind=answer_kind,
                seed=seed * 1000 + k,
                overwrite=overwrite,
                watch=watch,
                number=k,
            )
            folders.append(policy)
    return folders


def _round(
    policy: str | Path,
    questions: Sequence[Question],
    folder: Path,
    recipe: Recipe,
    sample: SampleConfig | CatConfig,
    *,
    verifier: Callable[[Policy], Verifier],
    extract: Extract,
    equal: Equal,
    answer_kind: str | None,
    seed: int,
    overwrite: bool,
    watch: Watch | None,
    number: int,
) -> Path:
    """One round, from the policy folder that it starts from to the one that it exports.

    Policy and judge live no longer than their round: those of two rounds at once are too many for a device.
    """

    def look(stage: str) -> Callable[..., None] | None:
        return None if watch is None else watch(stage, number)

    current = Policy.load(policy, recipe.dtype, recipe.mesh)
    judge = verifier(current)
    delimiter = (sample if isinstance(sample, SampleConfig) else sample.sample).step_delimiter
    traces = sample_stage(
        current,
        questions,
        folder / "traces.jsonl",
        sample,
        strategy="sample" if isinstance(sample, SampleConfig) else "explore",
        seed=seed,
        batch_size=recipe.batch_size,
        instruction=recipe.instruction,
        overwrite=overwrite,
        progress=look("sample"),
    )
    annotated = annotate_stage(
        current,
        traces,
        folder / "annotated.jsonl",
        judge,
        extract=extract,
        equal=equal,
        answer_kind=answer_kind,
        confidence=recipe.confidence,
        delimiter=delimiter,
        overwrite=overwrite,
        progress=look("annotate"),
    )
    pairs = folder / "pairs.jsonl"
    pairs_stage(
        current,
        annotated,
        pairs,
        recipe.pairs,
        judge,
        answer_kind=answer_kind,
        delimiter=delimiter,
        max_step_tokens=recipe.max_step_tokens,
        batch_size=recipe.batch_size,
        overwrite=overwrite,
        progress=look("pairs"),
    )
    del judge  # it may be a model of its own, and the updates need the memory, as they do that of the policy
    train_stage(
        current,
        pairs,
        annotated,
        folder / "train",
        dataclasses.replace(recipe.train, seed=recipe.train.seed + seed),
        reference_cache=recipe.reference_cache,
        overwrite=overwrite,
        donate=True,
        progress=look("train"),
    )
    current = current.readable(recipe.dtype, recipe.mesh)
    return export_stage(current, folder / "train", folder / "policy", overwrite=overwrite)


def at_round(recipe: Recipe, k: int) -> SampleConfig | CatConfig:
    """The sampling of round k (from 1), at its temperature. Raises UserError for one that cannot be."""
    if not recipe.temperatures:
        return recipe.sample
    temperature = recipe.temperatures[min(k, len(recipe.temperatures)) - 1]
    if isinstance(recipe.sample, SampleConfig):
        return dataclasses.replace(recipe.sample, temperature=temperature)
    inner = dataclasses.replace(recipe.sample.sample, temperature=temperature)
    return dataclasses.replace(recipe.sample, sample=inner)
