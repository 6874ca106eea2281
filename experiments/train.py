"""Pairs to a trained policy: step-level preference training of one round, checkpointed and resumable.

python -m experiments.train --model=POLICY --pairs_file=pairs.jsonl --annotated=annotated.jsonl --out_dir=RUN
python -m experiments.train ... --preset=paper --train.learning_rate=5e-7 --train.loss.beta=0.1
python -m experiments.export --model=POLICY --run=RUN --output=NEW_POLICY
"""

from __future__ import annotations

from typing import Any

from absl import flags

from experiments import common
from experiments.config_flags import define_config, given_config

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    from caspo_jax.training import TrainConfig

    common.define_model_flags()
    flags.DEFINE_string(
        "pairs_file", None, "JSONL of pairs (ours, Step-DPO-10K or TRL preference records)", required=True
    )
    flags.DEFINE_string(
        "annotated", None, "JSONL of annotated traces: verified steps for the NLL term and for rft"
    )
    flags.DEFINE_string("out_dir", None, "checkpoints and metrics of the run", required=True)
    flags.DEFINE_enum(
        "preset", "caspo", ["caspo", "paper"], "recipe; --train.NAME=value changes one of its settings"
    )
    define_config("train", TrainConfig.preset("caspo"), "training; what is not given comes from --preset")


def train_config() -> Any:
    """The preset, with the --train flags that were given."""
    from caspo_jax.training import TrainConfig

    return given_config("train", TrainConfig.preset(FLAGS.preset))


def main() -> None:
    """Train."""
    from caspo_jax.training.stages import train_stage

    policy = common.load_policy()
    with common.Progress(0, "train", unit="update") as progress:
        summary = train_stage(
            policy,
            FLAGS.pairs_file,
            FLAGS.annotated,
            FLAGS.out_dir,
            train_config(),
            overwrite=FLAGS.overwrite,
            progress=progress.reach,
        )
    common.closing(f"run in {FLAGS.out_dir}", summary)


if __name__ == "__main__":
    common.tune_malloc()
    define_flags()
    common.run(main)
