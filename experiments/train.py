"""Pairs to a trained policy: step-level preference training of one round, checkpointed and resumable.

python -m experiments.train --model=POLICY --pairs_file=pairs.jsonl --annotated=annotated.jsonl --out_dir=RUN
python -m experiments.train ... --preset=paper --train.learning_rate=5e-7 --train.loss.beta=0.1
python -m experiments.train ... --lora_rank=16 --reference_cache=CACHE
python -m experiments.export --model=POLICY --run=RUN --output=NEW_POLICY
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.models import LoraConfig
from caspo_jax.training import TrainConfig
from caspo_jax.training.stages import train_stage
from experiments import common
from experiments.config_flags import define_config, given_config

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    flags.DEFINE_string(
        "pairs_file", None, "JSONL of pairs (ours, Step-DPO-10K or TRL preference records)", required=True
    )
    flags.DEFINE_string(
        "annotated",
        None,
        "JSONL of annotated traces: verified steps for the NLL term (of --preset=caspo; paper reads none) and for rft",
    )
    flags.DEFINE_string("out_dir", None, "checkpoints and metrics of the run", required=True)
    flags.DEFINE_enum(
        "preset", "caspo", ["caspo", "paper"], "recipe; --train.NAME=value changes one of its settings"
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "pairs an update: another name of --train.batch_size; default: the preset's",
        lower_bound=1,
    )
    common.define_delimiter_flag("a step of Step-DPO-10K or TRL records")
    define_training_flags()


def define_training_flags() -> None:
    """The flags of every program that trains with a --preset."""
    define_recipe_flags()
    flags.DEFINE_string(
        "reference_cache",
        None,
        "folder of reference log-probs that runs share: another beta computes none; default: the run's own",
    )


def define_recipe_flags() -> None:
    """The flags that `train_config` reads beside --preset."""
    flags.DEFINE_integer(
        "lora_rank", None, "train LoRA adapters of this rank; default: train the weights", lower_bound=1
    )
    flags.DEFINE_float("lora_alpha", None, "the adapters' scale times their rank; default: twice the rank")
    flags.DEFINE_list(
        "lora_targets",
        ["all-linear"],
        "which maps get an adapter: some of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj, or all-linear",
    )
    define_config("train", TrainConfig.preset("caspo"), "training; what is not given comes from --preset")


def train_config(**fields: Any) -> TrainConfig:
    """The preset with these fields, then with the --train and --lora flags that were given."""
    lora = None
    if FLAGS.lora_rank is not None:
        lora = LoraConfig(FLAGS.lora_rank, FLAGS.lora_alpha, tuple(FLAGS.lora_targets))
    elif FLAGS["lora_alpha"].present or FLAGS["lora_targets"].present:
        raise UserError("--lora_alpha and --lora_targets go with --lora_rank")
    base = dataclasses.replace(TrainConfig.preset(FLAGS.preset), lora=lora, **fields)
    return given_config("train", base)


def main() -> None:
    """Train."""
    fields = {"seed": FLAGS.seed, "batch_size": FLAGS.batch_size}
    config = train_config(**{name: value for name, value in fields.items() if value is not None})
    for name, value in fields.items():
        _check_one_value(name, value, getattr(config, name))
    _check_verified(config)
    policy = common.load_policy()
    with common.Progress(0, "train", unit="update") as progress:
        summary = train_stage(
            policy,
            FLAGS.pairs_file,
            FLAGS.annotated,
            FLAGS.out_dir,
            config,
            delimiter=None if FLAGS.step_delimiter is None else common.step_delimiter(policy),
            reference_cache=FLAGS.reference_cache,
            overwrite=FLAGS.overwrite,
            donate=True,
            progress=progress.reach,
        )
    if "last" in summary:
        summary = {**summary, "last": _read_last(summary["last"])}
    common.closing(f"run in {FLAGS.out_dir}", summary)


def _check_one_value(name: str, value: Any, taken: Any) -> None:
    """Refuses a setting that two flags give two values; `taken` is that of --train.NAME, if that was given."""
    if FLAGS[name].present and value is not None and value != taken:
        raise UserError(
            f"--{name}={value} and --train.{name}={taken} are two values of one setting: give one of them"
        )


def _check_verified(config: TrainConfig) -> None:
    """Refuses a loss that reads verified steps where none are given, before the policy is loaded."""
    if FLAGS.annotated is not None or not config.loss.uses_verified:
        return
    way_out = "give annotated traces by --annotated=A.jsonl"
    if not given_config("train", TrainConfig.preset("paper")).loss.uses_verified:
        way_out += ", or train on the pairs alone by --preset=paper"
    loss = f"--train.loss.loss={config.loss.loss}, --train.loss.nll_on={config.loss.nll_on}"
    raise UserError(f"the loss of --preset={FLAGS.preset} ({loss}) reads verified steps: {way_out}")


def _read_last(record: Any) -> Any:
    """Of the last update's numbers those that tell how it went."""
    if not isinstance(record, Mapping):
        return record
    names = ("loss", "rewards/margin", "rewards/accuracy", "logps/chosen", "logps/rejected", "displacement")
    return {name: record[name] for name in names if name in record}


if __name__ == "__main__":
    common.tune_malloc()
    define_flags()
    common.run(main)
