"""Annotated traces to preference pairs and packed batches."""

from caspo_jax.preferences.candidates import Candidate, build_candidates, filter_candidates, question_of
from caspo_jax.preferences.competitors import CompetitorMaker, GreedyCompetitors, NoCompetitor, Rival
from caspo_jax.preferences.config import PAIR_PRESETS, PairConfig
from caspo_jax.preferences.labelled import labelled_to_trace, labelled_to_traces
from caspo_jax.preferences.left_out import (
    NoContrastError,
    NoContrastWarning,
    TooLongError,
    TooLongWarning,
)
from caspo_jax.preferences.packing import (
    batch_pairs,
    length_buckets,
    pack_pairs,
    pack_rows,
    verified_rows,
)
from caspo_jax.preferences.pair_tokens import tokenize_pairs
from caspo_jax.preferences.readers import (
    UnclosedThoughtWarning,
    load_pairs,
    read_step_dpo,
    read_trl,
    step_dpo_from_record,
    to_step_dpo_record,
    to_trl_record,
    trl_from_record,
)
from caspo_jax.preferences.selection import make_pair, select_pairs
from caspo_jax.preferences.step_dataset import check_step_dataset, step_rows, write_step_dataset
from caspo_jax.preferences.trees import tree_traces

__all__ = [
    "PAIR_PRESETS",
    "Candidate",
    "CompetitorMaker",
    "GreedyCompetitors",
    "NoCompetitor",
    "NoContrastError",
    "NoContrastWarning",
    "PairConfig",
    "Rival",
    "TooLongError",
    "TooLongWarning",
    "UnclosedThoughtWarning",
    "batch_pairs",
    "build_candidates",
    "check_step_dataset",
    "filter_candidates",
    "labelled_to_trace",
    "labelled_to_traces",
    "length_buckets",
    "load_pairs",
    "make_pair",
    "pack_pairs",
    "pack_rows",
    "question_of",
    "read_step_dpo",
    "read_trl",
    "select_pairs",
    "step_dpo_from_record",
    "step_rows",
    "to_step_dpo_record",
    "to_trl_record",
    "tokenize_pairs",
    "tree_traces",
    "trl_from_record",
    "verified_rows",
    "write_step_dataset",
]
