"""The stages of a round as functions from files to files, each resumable: sample, annotate, pair, train, export.

A stage writes a manifest of its settings and input hashes. Run again with the same ones it goes on where it was
stopped, or does nothing if it was done; with others it raises UserError unless told to overwrite.
"""

from caspo_jax.training.stages.annotate import annotate_stage
from caspo_jax.training.stages.export import export_adapter, export_stage, merge_stage
from caspo_jax.training.stages.labelled import labelled_stage
from caspo_jax.training.stages.pairs import pairs_stage, read_pairs, verified_traces
from caspo_jax.training.stages.policy import Policy
from caspo_jax.training.stages.sample import sample_stage
from caspo_jax.training.stages.train import train_stage

__all__ = [
    "Policy",
    "annotate_stage",
    "export_adapter",
    "export_stage",
    "labelled_stage",
    "merge_stage",
    "pairs_stage",
    "read_pairs",
    "sample_stage",
    "train_stage",
    "verified_traces",
]
