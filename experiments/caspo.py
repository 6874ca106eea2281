"""All rounds of CASPO on a checkpoint and a file of questions, resumable: kill it at any moment and run it again.

    python -m experiments.caspo --model=POLICY --input=questions.jsonl --out_dir=DIR --rounds=3

Each round samples --num_samples outputs a question (or explores a tree with --explore), annotates their steps, makes
preference pairs, trains on them and exports DIR/round_k/policy in Hugging Face layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.distributed import from_writer
from caspo_jax.errors import UserError
from caspo_jax.models import hash_checkpoint, resolve_folder
from caspo_jax.models.lora import check_rank
from caspo_jax.preferences import PairConfig
from caspo_jax.sampling import CatConfig, SampleConfig
from caspo_jax.steps import NoisyVerifier, Verifier
from caspo_jax.training.rounds import Recipe, at_round, run_rounds
from caspo_jax.training.stages import Policy
from caspo_jax.training.stages.policy import questions_digest
from caspo_jax.types import Equal, Extract, Question
from experiments import common, result_files, verifiers
from experiments.config_flags import define_config, given_config
from experiments.train import define_training_flags, train_config

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    common.define_decoding_flags(num_samples=8)
    common.define_question_flags()
    common.define_answer_flags()
    verifiers.define_flags()
    flags.DEFINE_string("input", None, "JSONL of questions", required=True)
    flags.DEFINE_string("out_dir", None, "where the rounds go", required=True)
    flags.DEFINE_integer("rounds", 3, "rounds", lower_bound=1)
    flags.DEFINE_enum(
        "preset",
        "caspo",
        ["caspo", "paper"],
        "recipe of pairs and training; --pairs.NAME=value and --train.NAME=value change one of its settings",
    )
    flags.DEFINE_multi_float(
        "temperatures", None, "sampling temperature of round 1, 2, ... (repeatable; the last stays)"
    )
    flags.DEFINE_bool(
        "explore", False, "explore a tree of --num_samples slots instead of independent outputs"
    )
    flags.DEFINE_integer(
        "root_branches", None, "branches an exploration starts with; default: a quarter of the slots"
    )
    flags.DEFINE_float(
        "label_noise",
        0.0,
        "share of the verifier's verdicts that are flipped (seeded; in the manifests)",
        0.0,
        1.0,
    )
    common.define_confidence_flag("that pairs are chosen by")
    flags.DEFINE_integer(
        "max_step_tokens", 256, "a competitor that goes on for longer is dropped", lower_bound=1
    )
    define_config("pairs", PairConfig.preset("caspo"), "which pairs; what is not given comes from --preset")
    define_training_flags()


def main() -> None:
    """Run the rounds."""
    if FLAGS.root_branches and not FLAGS.explore:
        raise UserError("--root_branches goes with --explore")
    verifiers.check_confidence()
    # The rounds load the policy; a second copy would stay on the device through all of them.
    policy = Policy.without_weights(FLAGS.model)
    confidence = verifiers.trace_confidence(policy)
    training = train_config()
    if training.lora is not None:
        check_rank(policy.model.config, training.lora)  # before the samples that it would be trained on
    verifiers.check(policy)
    questions = common.load_questions(FLAGS.input, need_gold=verifiers.needs_gold(policy))
    decoding = common.sample_config(policy, questions)
    common.say_recommended(policy, decoding)
    sample: SampleConfig | CatConfig = decoding
    if FLAGS.explore:
        sample = CatConfig(
            num_branches=FLAGS.num_samples,
            root_branches=FLAGS.root_branches or max(1, FLAGS.num_samples // 4),
            sample=dataclasses.replace(decoding, num_samples=1),
        )
    extract, equal = common.answer_functions(policy)
    recipe = Recipe(
        sample=sample,
        pairs=given_config("pairs", PairConfig.preset(FLAGS.preset)),
        train=training,
        reference_cache=FLAGS.reference_cache,
        batch_size=FLAGS.batch_size,
        confidence=confidence,
        max_step_tokens=FLAGS.max_step_tokens,
        dtype=FLAGS.dtype,
        mesh=common.mesh(),
        instruction=common.instruction(),
        temperatures=tuple(FLAGS.temperatures or ()),
    )
    out = Path(FLAGS.out_dir)
    begun = out / "round_1" / "traces.jsonl.manifest.json"
    with result_files.claimed_folder(out, "caspo", settings(policy, questions, recipe), begun) as finish:
        folders = run_rounds(
            FLAGS.model,
            questions,
            out,
            recipe,
            verifier=lambda current: judge(current, extract, equal),
            extract=extract,
            equal=equal,
            answer_kind=verifiers.answer_kind(policy),
            rounds=FLAGS.rounds,
            seed=FLAGS.seed,
            overwrite=FLAGS.overwrite,
            watch=common.watch("caspo"),
        )
        finish(rounds=len(folders))
    common.closing(
        f"{len(folders)} round{'s' * (len(folders) != 1)} in {FLAGS.out_dir}",
        {f.parent.name: str(Path(f)) for f in folders},
    )


def settings(policy: Policy, questions: Sequence[Question], recipe: Recipe) -> dict[str, Any]:
    """What shapes all rounds, for the folder's manifest; not how many there are, for more may follow."""
    rounds = range(1, max(1, len(recipe.temperatures)) + 1)  # all later ones sample as the last of these
    return common.instruction_setting() | {
        "policy": from_writer("policy", lambda: hash_checkpoint(resolve_folder(policy.path))),
        "dtype": recipe.dtype,
        "questions": questions_digest(questions),
        "preset": FLAGS.preset,
        "sample": {f"round_{k}": dataclasses.asdict(at_round(recipe, k)) for k in rounds},
        "pairs": dataclasses.asdict(recipe.pairs),
        "train": recipe.train.shaping(),
        "confidence": recipe.confidence,
        "verifier": verifiers.choose(policy),
        "label_noise": FLAGS.label_noise,
        "answers": verifiers.answer_kind(policy),
        "max_step_tokens": recipe.max_step_tokens,
        "batch_size": recipe.batch_size,
        "seed": FLAGS.seed,
    }


def judge(policy: Policy, extract: Extract, equal: Equal) -> Verifier:
    """The verifier of the flags, with the noise of --label_noise."""
    exact = verifiers.build(policy, extract, equal)
    return NoisyVerifier(exact, FLAGS.label_noise, FLAGS.seed) if FLAGS.label_noise else exact


if __name__ == "__main__":
    common.tune_malloc()
    define_flags()
    common.run(main)
