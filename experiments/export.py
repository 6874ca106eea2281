"""A checkpoint of a training run to a policy folder that transformers loads.

    python -m experiments.export --model=POLICY --run=RUN --output=NEW_POLICY
    python -m experiments.export --model=POLICY --run=RUN --output=ADAPTER --format=peft
    python -m experiments.export --model=POLICY --adapter=ADAPTER --output=NEW_POLICY

--model is the policy that the run started from: its tokenizer, configuration and caspo.json go along. The adapters of a
--lora_rank run are merged into the weights, or with --format=peft written by themselves for PEFT; and --adapter
merges adapters that PEFT (or --format=peft) wrote.
"""

from __future__ import annotations

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.training.stages import export_adapter, export_stage, merge_stage
from experiments import common

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    flags.DEFINE_string("run", None, "folder of a training run")
    flags.DEFINE_string("adapter", None, "folder of LoRA adapters in PEFT's format, instead of --run")
    flags.DEFINE_enum(
        "format", "policy", ["policy", "peft"], "a whole checkpoint, or the run's adapters alone"
    )
    flags.DEFINE_string("output", None, "where the policy goes", required=True)
    flags.DEFINE_string(
        "checkpoint", "last", "last, best (of a run with --train.best_metric) or the number of an update"
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "taken so that every stage takes the same flags; an export has no rows",
        lower_bound=1,
    )


def main() -> None:
    """Export."""
    if (FLAGS.run is None) == (FLAGS.adapter is None):
        raise UserError("give one of --run and --adapter")
    for flag in ("format", "checkpoint"):
        if FLAGS.adapter is not None and FLAGS[flag].present:
            raise UserError(f"--{flag} goes with --run, not --adapter")
    policy = common.load_policy()
    if FLAGS.adapter is not None:
        adapter = common.require_folder(FLAGS.adapter, "adapter")
        folder = merge_stage(policy, adapter, FLAGS.output, overwrite=FLAGS.overwrite)
    else:
        export = export_stage if FLAGS.format == "policy" else export_adapter
        run = common.require_folder(FLAGS.run, "run")
        folder = export(policy, run, FLAGS.output, checkpoint=FLAGS.checkpoint, overwrite=FLAGS.overwrite)
    common.closing(f"{'adapters' if FLAGS.format == 'peft' else 'policy'} in {folder}", {})


if __name__ == "__main__":
    define_flags()
    common.run(main)
