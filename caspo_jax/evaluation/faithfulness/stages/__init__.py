"""The stages of a faithfulness report as functions from files to files, each resumable after a kill at any moment."""

from caspo_jax.evaluation.faithfulness.stages.forced import forced_stage
from caspo_jax.evaluation.faithfulness.stages.probed import probe_stage
from caspo_jax.evaluation.faithfulness.stages.sampled import prefix_stage
from caspo_jax.evaluation.faithfulness.stages.stage import Stage, check_settings, read_stage
from caspo_jax.evaluation.faithfulness.stages.words import decisiveness_stage

__all__ = [
    "Stage",
    "check_settings",
    "decisiveness_stage",
    "forced_stage",
    "prefix_stage",
    "probe_stage",
    "read_stage",
]
