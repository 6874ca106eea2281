"""Does a trace sound as sure as the model is? How it sounds: decisiveness of steps, and what may change it."""

from caspo_jax.evaluation.faithfulness.agreement import Agreement, agreement
from caspo_jax.evaluation.faithfulness.decisiveness import (
    DecisivenessScorer,
    Score,
    TraceScorer,
    score_traces,
)
from caspo_jax.evaluation.faithfulness.judge import (
    LocalDecisivenessJudge,
    judge_from_model,
    load_rubric,
    parse_rating,
)
from caspo_jax.evaluation.faithfulness.lexicon import LexiconScorer, Mark, SentenceScore
from caspo_jax.evaluation.faithfulness.patterns import Entry, Lexicon, load_lexicon
from caspo_jax.evaluation.faithfulness.prompts import INTERVENTIONS, load_intervention
from caspo_jax.evaluation.faithfulness.recorded import RecordedScores, read_scores, scores_to_record
from caspo_jax.evaluation.faithfulness.thinking import (
    Span,
    Thinking,
    ThinkingCounts,
    count_thinking,
    thinking_steps,
)

__all__ = [
    "INTERVENTIONS",
    "Agreement",
    "DecisivenessScorer",
    "Entry",
    "Lexicon",
    "LexiconScorer",
    "LocalDecisivenessJudge",
    "Mark",
    "RecordedScores",
    "Score",
    "SentenceScore",
    "Span",
    "Thinking",
    "ThinkingCounts",
    "TraceScorer",
    "agreement",
    "count_thinking",
    "judge_from_model",
    "load_intervention",
    "load_lexicon",
    "load_rubric",
    "parse_rating",
    "read_scores",
    "score_traces",
    "scores_to_record",
    "thinking_steps",
]
