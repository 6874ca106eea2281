"""Annotated traces to step-level preference pairs.

python -m experiments.pairs --model=POLICY --input=annotated.jsonl --output=pairs.jsonl
python -m experiments.pairs ... --pairs.kinds="('wrong',)" --pairs.max_pairs_per_prefix=2 --trl_output=trl.jsonl
"""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

from caspo_jax.outputs import Manifest, check_own, manifest_path
from caspo_jax.preferences import PairConfig, to_trl_record
from caspo_jax.records import pair_from_record, trace_from_record
from caspo_jax.store import each_record, write_jsonl
from caspo_jax.training.stages import pairs_stage
from experiments import common, verifiers
from experiments.config_flags import define_config, given_config

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    common.define_answer_flags()
    verifiers.define_flags()
    flags.DEFINE_enum(
        "preset", "caspo", ["caspo", "paper"], "rule; --pairs.NAME=value changes one of its settings"
    )
    define_config("pairs", PairConfig.preset("caspo"), "which pairs; what is not given comes from --preset")
    flags.DEFINE_string("input", None, "JSONL of annotated traces", required=True)
    flags.DEFINE_string("output", None, "JSONL of pairs", required=True)
    common.define_delimiter_flag()
    flags.DEFINE_integer(
        "max_step_tokens", 256, "a competitor that goes on for longer is dropped", lower_bound=1
    )
    flags.DEFINE_integer("batch_size", None, "rows decoded together; default: by memory", lower_bound=1)
    flags.DEFINE_string("trl_output", None, "also write the pairs as TRL preference records here")


def main() -> None:
    """Make the pairs of a file."""
    common.check_outputs(("output", "trl_output"), ("input", "labels"))
    if FLAGS.trl_output:
        check_own(FLAGS.trl_output, FLAGS.overwrite)
    policy = common.load_policy()
    if verifiers.needs_gold(policy):  # the stage reads the traces itself: only golds are looked for here
        verifiers.check_golds(each_record(FLAGS.input, trace_from_record))
    extract, equal = common.answer_functions(policy)
    delimiter = common.step_delimiter(policy)
    with common.Progress(0, "pairs", unit="competitor") as progress:
        counts = pairs_stage(
            policy,
            FLAGS.input,
            FLAGS.output,
            given_config("pairs", dataclasses.replace(PairConfig.preset(FLAGS.preset), seed=FLAGS.seed)),
            verifiers.build(policy, extract, equal),
            answer_kind=verifiers.answer_kind(policy),
            delimiter=delimiter,
            max_step_tokens=FLAGS.max_step_tokens,
            batch_size=FLAGS.batch_size,
            overwrite=FLAGS.overwrite,
            progress=progress.reach,
        )
    if FLAGS.trl_output:
        write_trl(policy.tokenizer, counts["pairs"])
    common.closing(f"pairs in {FLAGS.output}", {k: v for k, v in counts.items() if v or k == "pairs"})


def write_trl(tokenizer: Any, count: int) -> None:
    """The pairs, so many, as TRL preference records, with a manifest of their own."""
    manifest = Manifest.open(
        manifest_path(FLAGS.trl_output),
        program="pairs/trl",
        config={},
        inputs={"pairs": FLAGS.output},
        overwrite=FLAGS.overwrite,
    )
    pairs = each_record(FLAGS.output, pair_from_record)
    write_jsonl(FLAGS.trl_output, (to_trl_record(pair, tokenizer=tokenizer) for pair in pairs))
    manifest.finish(pairs=count)


if __name__ == "__main__":
    define_flags()
    common.run(main)
