"""Text <-> steps, answers, verifiers: traces to annotated traces."""

from caspo_jax.steps.annotate import (
    annotate_trace,
    annotate_traces,
    first_wrong_step,
    is_closed,
    is_flawed_correct,
    prefix_verdict,
    segment_trace,
    step_items,
    verify_traces,
)
from caspo_jax.steps.answers import AnswerKind, equivalent, extract_answer, last_boxed
from caspo_jax.steps.equations import Equation, check_equations, stated_equations
from caspo_jax.steps.segmentation import DEFAULT_DELIMITER, decode_with_offsets, segment, segment_text
from caspo_jax.steps.verifiers import (
    ExactChecker,
    FirstKnown,
    GoldAnswer,
    RecordedLabels,
    StatedEquations,
    Verifier,
    VerifyItem,
)

__all__ = [
    "DEFAULT_DELIMITER",
    "AnswerKind",
    "Equation",
    "ExactChecker",
    "FirstKnown",
    "GoldAnswer",
    "RecordedLabels",
    "StatedEquations",
    "Verifier",
    "VerifyItem",
    "annotate_trace",
    "annotate_traces",
    "check_equations",
    "decode_with_offsets",
    "equivalent",
    "extract_answer",
    "first_wrong_step",
    "is_closed",
    "is_flawed_correct",
    "last_boxed",
    "prefix_verdict",
    "segment",
    "segment_text",
    "segment_trace",
    "stated_equations",
    "step_items",
    "verify_traces",
]
