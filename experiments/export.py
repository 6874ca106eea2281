"""A checkpoint of a training run to a policy folder that transformers loads.

    python -m experiments.export --model=POLICY --run=RUN --output=NEW_POLICY

--model is the policy that the run started from: its tokenizer, configuration and caspo.json go along.
"""

from __future__ import annotations

from absl import flags

from experiments import common

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    flags.DEFINE_string("run", None, "folder of a training run", required=True)
    flags.DEFINE_string("output", None, "where the policy goes", required=True)
    flags.DEFINE_string(
        "checkpoint", "last", "last, best (of a run with --train.best_metric) or the number of an update"
    )


def main() -> None:
    """Export."""
    from caspo_jax.training.stages import export_stage

    run = common.require_folder(FLAGS.run, "run")
    folder = export_stage(
        common.load_policy(), run, FLAGS.output, checkpoint=FLAGS.checkpoint, overwrite=FLAGS.overwrite
    )
    common.closing(f"policy in {folder}", {})


if __name__ == "__main__":
    define_flags()
    common.run(main)
