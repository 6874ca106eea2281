"""Run folders to one HTML file: tables, plots, traces with their confidences, CaT trees, pairs, provenance.

    python -m experiments.report --runs=DIR --output=report.html
    python -m experiments.report --runs=BEFORE,AFTER --output=report.html      # side by side
    python -m experiments.report --runs=DIR --tokenizer=POLICY --output=report.html

A run is any folder that the programs wrote: its *.jsonl are known by their records (traces, trees, pairs, training
metrics), its *.json and manifests are shown as tables. The file needs no network and runs nothing that a model wrote.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation.report import write_report
from experiments import common, result_files

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_list("runs", None, "folders of runs, separated by commas", required=True)
    result_files.define_output_flags("the HTML file")
    flags.mark_flag_as_required("output")
    flags.DEFINE_string("title", None, "heading; default: the runs' names")
    flags.DEFINE_string("tokenizer", None, "folder of the records' tokenizer, if the runs hold no policy")
    common.define_terminal_flags()
    flags.DEFINE_integer("max_traces", 10_000, "most traces shown of one file", lower_bound=1)


def main() -> None:
    """Write the report."""
    if Path(FLAGS.output).is_dir():
        raise UserError(f"--output={FLAGS.output} is a folder: name the HTML file")
    result_files.check_report(FLAGS.output)
    if FLAGS.tokenizer is not None:
        common.require_folder(FLAGS.tokenizer, "tokenizer")
    with common.Progress(len(FLAGS.runs), "report", unit="part") as progress:
        written = write_report(
            FLAGS.runs,
            FLAGS.output,
            title=FLAGS.title,
            tokenizer=FLAGS.tokenizer,
            most_traces=FLAGS.max_traces,
            progress=progress.reach,
        )
    common.closing(f"report in {written}", {"runs": len(FLAGS.runs), "bytes": written.stat().st_size})


if __name__ == "__main__":
    define_flags()
    common.run(main, resumes=False)
