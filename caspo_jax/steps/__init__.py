"""Text <-> steps, answers, verifiers: traces to annotated traces."""

from caspo_jax.steps.annotate import (
    annotate_trace,
    annotate_traces,
    first_wrong_step,
    is_closed,
    is_flawed_correct,
    measure_steps,
    prefix_verdict,
    segment_trace,
    step_items,
    verify_traces,
    with_answer,
)
from caspo_jax.steps.answers import AnswerKind, equivalent, extract_answer
from caspo_jax.steps.equations import Equation, check_equations, stated_equations
from caspo_jax.steps.judge import LocalJudge, load_prompt, parse_verdict
from caspo_jax.steps.labels import (
    LabelledSteps,
    first_error_verdicts,
    math_shepherd_from_record,
    prm800k_from_record,
    processbench_from_record,
    read_labelled,
    read_labels,
)
from caspo_jax.steps.marked import last_boxed
from caspo_jax.steps.noise import NoisyVerifier
from caspo_jax.steps.rollouts import Rollouts
from caspo_jax.steps.segmentation import DEFAULT_DELIMITER, segment, segment_text
from caspo_jax.steps.verifiers import (
    ExactChecker,
    FirstKnown,
    GoldAnswer,
    RecordedLabels,
    StatedEquations,
    Verifier,
    VerifyItem,
    verifier_settings,
)

__all__ = [
    "DEFAULT_DELIMITER",
    "AnswerKind",
    "Equation",
    "ExactChecker",
    "FirstKnown",
    "GoldAnswer",
    "LabelledSteps",
    "LocalJudge",
    "NoisyVerifier",
    "RecordedLabels",
    "Rollouts",
    "StatedEquations",
    "Verifier",
    "VerifyItem",
    "annotate_trace",
    "annotate_traces",
    "check_equations",
    "equivalent",
    "extract_answer",
    "first_error_verdicts",
    "first_wrong_step",
    "is_closed",
    "is_flawed_correct",
    "last_boxed",
    "load_prompt",
    "math_shepherd_from_record",
    "measure_steps",
    "parse_verdict",
    "prefix_verdict",
    "prm800k_from_record",
    "processbench_from_record",
    "read_labelled",
    "read_labels",
    "segment",
    "segment_text",
    "segment_trace",
    "stated_equations",
    "step_items",
    "verifier_settings",
    "verify_traces",
    "with_answer",
]
