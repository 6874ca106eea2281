"""Does a trace sound as sure as the model is? Words against token, hidden-state, sampling and probe confidence.

From a file to a report:

* `sources`, `formats`, `messages`, `token_records`: files of any tool to outputs as they were found;
* `thinking`, `placing`, `subjects`: outputs to traces whose steps are spans of text and of tokens;
* decisiveness of the words: `lexicon` (with `wording`, `clauses`, `patterns` and lexicon.tsv), `judge`, `recorded`;
* confidence of the model: `estimators` (token statistics), `prefix` and `contradiction` (resampling), RCC and the probe from
  `caspo_jax.confidence`;
* `stages`: each of these as a file that a killed run goes on with;
* `table`, `pairing`, `faithful`, `skill`, `agreement`, `report`, `ordering`: those files to figures; `render`, `figures`: to text and plots.

`prompts` holds the interventions that a model is asked under.
"""

from caspo_jax.evaluation.faithfulness.agreement import Agreement, agreement
from caspo_jax.evaluation.faithfulness.contradiction import (
    AnswerEquivalence,
    ContradictionItem,
    ContradictionJudge,
    LocalContradictionJudge,
    load_contradiction_prompt,
    parse_contradiction,
)
from caspo_jax.evaluation.faithfulness.decisiveness import (
    DecisivenessScorer,
    Score,
    TraceScorer,
    score_traces,
)
from caspo_jax.evaluation.faithfulness.estimators import published_token, token_values
from caspo_jax.evaluation.faithfulness.faithful import faithfulness_record, trajectory
from caspo_jax.evaluation.faithfulness.formats import Source
from caspo_jax.evaluation.faithfulness.judge import (
    LocalDecisivenessJudge,
    judge_from_model,
    load_rubric,
    parse_rating,
)
from caspo_jax.evaluation.faithfulness.lexicon import LexiconScorer, Mark, SentenceScore
from caspo_jax.evaluation.faithfulness.ordering import ordering_record, render_ordering
from caspo_jax.evaluation.faithfulness.pairing import Pairing, pair_up
from caspo_jax.evaluation.faithfulness.patterns import Entry, Lexicon, load_lexicon
from caspo_jax.evaluation.faithfulness.placing import place_steps
from caspo_jax.evaluation.faithfulness.prefix import Consistency, PrefixConfig, prefix_consistency
from caspo_jax.evaluation.faithfulness.prompts import INTERVENTIONS, load_intervention, with_intervention
from caspo_jax.evaluation.faithfulness.recorded import RecordedScores, read_scores, scores_to_record
from caspo_jax.evaluation.faithfulness.render import render_comparison, render_report
from caspo_jax.evaluation.faithfulness.report import calibration_record, compare_record, report_record
from caspo_jax.evaluation.faithfulness.sources import read_sources
from caspo_jax.evaluation.faithfulness.stages import (
    Stage,
    decisiveness_stage,
    forced_stage,
    prefix_stage,
    probe_stage,
    read_stage,
)
from caspo_jax.evaluation.faithfulness.subjects import (
    Subject,
    count_subjects,
    prepare,
    subject_from_record,
    subject_to_record,
)
from caspo_jax.evaluation.faithfulness.table import ESTIMATORS, Table, build_table, step_records
from caspo_jax.evaluation.faithfulness.thinking import (
    Span,
    Thinking,
    ThinkingCounts,
    count_thinking,
    thinking_steps,
)
from caspo_jax.evaluation.faithfulness.token_records import RecordedToken

__all__ = [
    "ESTIMATORS",
    "INTERVENTIONS",
    "Agreement",
    "AnswerEquivalence",
    "Consistency",
    "ContradictionItem",
    "ContradictionJudge",
    "DecisivenessScorer",
    "Entry",
    "Lexicon",
    "LexiconScorer",
    "LocalContradictionJudge",
    "LocalDecisivenessJudge",
    "Mark",
    "Pairing",
    "PrefixConfig",
    "RecordedScores",
    "RecordedToken",
    "Score",
    "SentenceScore",
    "Source",
    "Span",
    "Stage",
    "Subject",
    "Table",
    "Thinking",
    "ThinkingCounts",
    "TraceScorer",
    "agreement",
    "build_table",
    "calibration_record",
    "compare_record",
    "count_subjects",
    "count_thinking",
    "decisiveness_stage",
    "faithfulness_record",
    "forced_stage",
    "judge_from_model",
    "load_contradiction_prompt",
    "load_intervention",
    "load_lexicon",
    "load_rubric",
    "ordering_record",
    "pair_up",
    "parse_contradiction",
    "parse_rating",
    "place_steps",
    "prefix_consistency",
    "prefix_stage",
    "prepare",
    "probe_stage",
    "published_token",
    "read_scores",
    "read_sources",
    "read_stage",
    "render_comparison",
    "render_ordering",
    "render_report",
    "report_record",
    "score_traces",
    "scores_to_record",
    "step_records",
    "subject_from_record",
    "subject_to_record",
    "thinking_steps",
    "token_values",
    "trajectory",
    "with_intervention",
]
