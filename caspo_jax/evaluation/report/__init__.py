"""report.html: a run's numbers, traces, search trees and pairs in one file that opens anywhere.

`folder` reads a run; `headline`, `tables` and `figures` (with those of `evaluate` and `faithfulness`) make the Summary;
`trace_view`, `tree_view` and `pair_view` make the data that script/traces.js, trees.js and pairs.js draw; `page` fills
report.html.jinja with all of it.
"""

from caspo_jax.evaluation.report.folder import Run, load_run
from caspo_jax.evaluation.report.page import is_report, render, write_report

__all__ = ["Run", "is_report", "load_run", "render", "write_report"]
