"""Annotated traces to preference pairs and packed batches."""

from caspo_jax.preferences.candidates import Candidate, build_candidates, filter_candidates, question_of
from caspo_jax.preferences.competitors import CompetitorMaker, GreedyCompetitors, NoCompetitor, Rival
from caspo_jax.preferences.config import PairConfig
from caspo_jax.preferences.selection import make_pair, select_pairs

__all__ = [
    "Candidate",
    "CompetitorMaker",
    "GreedyCompetitors",
    "NoCompetitor",
    "PairConfig",
    "Rival",
    "build_candidates",
    "filter_candidates",
    "make_pair",
    "question_of",
    "select_pairs",
]
