"""A calibrated threshold on the command line: settings come from its file, and are checked against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation.thresholds import Calibration, outside
from experiments.escapes import escaped
from experiments.questions import instruction

FLAGS = flags.FLAGS

# Flag -> setting of the calibration. What is not given on the command line is taken from the file.
_SETTINGS = {
    "prune": "prune",
    "confidence": "step_confidence",
    "path_confidence": "path_confidence",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_new_tokens",
    "stop": "stop",
    "step_delimiter": "step_delimiter",
    "ignore_eos": "ignore_eos",
}


def define_flag() -> None:
    """--calibration."""
    flags.DEFINE_string(
        "calibration",
        None,
        "file that `calibrate` wrote: gives the threshold, and unless flags do so the number of branches, the temperature, the "
        "confidences and the instruction; flags that contradict it are refused",
    )


def load() -> Any:
    """The calibration of --calibration, its settings put into the flags that were not given; None without one."""
    if FLAGS.calibration is None:
        return None
    if FLAGS["threshold"].present:
        raise UserError("--threshold and --calibration exclude each other: drop one")
    found = Calibration.load(FLAGS.calibration)
    for flag, setting in _SETTINGS.items():
        value = found.search.get(setting)
        if not FLAGS[flag].present and value is not None:
            FLAGS[flag].value = _as_given(value)
    if not FLAGS["num_branches"].present and not FLAGS["root_branches"].present:
        FLAGS["num_branches"].value = found.search["branches"]
    _same_instruction(found)
    return found


def _same_instruction(found: Any) -> None:
    """What questions end with: as the calibration's did, which is no setting of a search.

    Raises:
      UserError: --instruction says otherwise.
    """
    if not FLAGS["instruction"].present and found.instruction is not None:
        FLAGS["instruction"].value = _as_given(found.instruction)
    here = instruction()
    if here != found.instruction:
        raise UserError(
            f"{FLAGS.calibration} does not hold for --instruction={FLAGS.instruction}: "
            + (
                "it was made without one"
                if found.instruction is None
                else f"then it was {found.instruction!r}"
            )
        )


def _as_given(value: Any) -> Any:
    """A setting as its flag would be written: texts by their escapes, which are read where the flag is used."""
    if isinstance(value, list):
        return [_as_given(item) for item in value]
    return escaped(value) if isinstance(value, str) else value


def check_place(output: str) -> None:
    """Refuses a file that is there and is no calibration, unless it may be overwritten."""
    if not Path(output).exists() or FLAGS.overwrite:
        return
    try:
        Calibration.load(output)
    except UserError as error:
        raise UserError(
            f"{output} is there and is no calibration: use another output or --overwrite"
        ) from error


def applied(found: Any, config: Any, policy: Any) -> Any:
    """The search at the calibrated threshold, checked; unchanged without a calibration."""
    if found is None:
        return config
    return found.apply(config, policy.hash, where=FLAGS.calibration)


def caveat(found: Any, config: Any) -> dict[str, str]:
    """A line of the closing summary where the search goes beyond what the guarantee covers."""
    notes = [] if found is None else outside(config)
    if not notes:
        return {}
    return {"outside the guarantee": "; ".join(notes) + " (--expand=1 without --token_budget keeps it)"}


def search_config(policy: Any, questions: Any) -> Any:
    """The search of the flags with a single sample a branch."""
    from experiments import common

    return common.cat_config(policy, common.sample_config(policy, questions, num_samples=1))
