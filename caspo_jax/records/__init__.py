"""Records on disk: one dict a line, with a `schema` field, for questions, traces, pairs and trees (docs/formats.md)."""

from caspo_jax.records.pairs import pair_from_record, pair_to_record
from caspo_jax.records.questions import question_from_record, question_to_record
from caspo_jax.records.traces import trace_features, trace_from_record, trace_to_record
from caspo_jax.records.trees import search_to_record, tree_from_record, tree_to_record
from caspo_jax.records.values import VERSION, check_schema, finite, schema, schema_name

__all__ = [
    "VERSION",
    "check_schema",
    "finite",
    "pair_from_record",
    "pair_to_record",
    "question_from_record",
    "question_to_record",
    "schema",
    "schema_name",
    "search_to_record",
    "trace_features",
    "trace_from_record",
    "trace_to_record",
    "tree_from_record",
    "tree_to_record",
]
