"""The last stage of `faithfulness`: what the others found as tables, JSON, a line a step and plots."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation import faithfulness as f
from caspo_jax.evaluation.faithfulness import Subject, Table, figures, read_stage
from caspo_jax.outputs import Manifest, manifest_path, read_manifest
from caspo_jax.store import write_json, write_jsonl, write_text
from experiments import common

FLAGS = flags.FLAGS


def check_version(out: Path) -> None:
    """Refuses to replace a report of an earlier version, which left no manifest of it.

    Args:
      out: its folder.

    Raises:
      UserError: such a report is there, and --overwrite was not given.
    """
    finished = out / "report.json"
    if finished.exists() and not FLAGS.overwrite and not manifest_path(out, folder=True).exists():
        raise UserError(
            f"{finished} is of an earlier version, which did not say with which --seed, --draws and --verifier it was made: "
            "use another --out_dir or --overwrite"
        )


def claim(out: Path, settings: Mapping[str, Any]) -> Manifest:
    """The manifest of the report, DIR/manifest.json.

    The stages are not among its settings: a report of more of them takes the place of one of fewer.

    Args:
      out: the folder.
      settings: every other one that shapes the report; the stages' files have manifests of their own.

    Raises:
      UserError: a report is there that was made with other settings, and --overwrite was not given.
    """
    path = manifest_path(out, folder=True)

    def unfinished() -> bool:
        """Is it of a run of ours that ended before it had a report?"""
        return read_manifest(path).get("program") == "faithfulness" and not (out / "report.json").exists()

    overwrite = FLAGS.overwrite or unfinished()
    return Manifest.open(path, program="faithfulness", config=settings, overwrite=overwrite)


def write(
    subjects: Sequence[Subject],
    verdicts: Mapping[str, Sequence[bool | None]],
    out: Path,
    settings: Mapping[str, Any],
    left_out: Mapping[str, str],
) -> dict[str, int]:
    """Tables, JSON, per-step lines, plots; how much there was of what."""
    table = f.build_table(subjects, out, verdicts)
    facts = {
        "settings": dict(settings),
        "left_out": dict(left_out),
        "recorded_logprobs": recorded_logprobs(out),
        "continuations": judged_continuations(out),
    }
    with common.Progress(len(table.confidence), "report", unit="confidence") as progress:
        counts = f.count_subjects(subjects)
        record = f.report_record(table, counts, FLAGS.draws, FLAGS.seed, progress.reach, **facts)
    write_jsonl(out / "steps.jsonl", f.step_records(table))
    text = f.render_report(record)
    write_text(out / "report.txt", text)
    if FLAGS.plots:
        draw(table, out)
    write_json(out / "report.json", record)
    common.say(text)
    scorers, confidences = len(table.decisiveness), len(table.confidence)
    return {"steps": len(table.texts), "scorers": scorers, "confidences": confidences}


def recorded_logprobs(out: Path) -> dict[str, Any]:
    """How far recorded log-probs are from this checkpoint's: a large gap means that another model wrote the traces."""
    found = (record["logprob_gap"] for record in read_stage(out / "token.jsonl").values())
    gaps = [gap for gap in found if gap is not None]
    if not gaps:
        return {"traces": 0}
    return {"traces": len(gaps), "median_gap": statistics.median(gaps), "largest_gap": max(gaps)}


def judged_continuations(out: Path) -> dict[str, int]:
    """How many continuations were held against their steps, and of how many the judge could not tell."""
    file = out / "prefix.jsonl"
    samples = read_manifest(manifest_path(file)).get("config", {}).get("samples", 0)
    records = read_stage(file).values()
    return {
        "judged": samples * sum(len(record["steps"]) for record in records),
        "unparsed": sum(sum(record["unparsed"]) for record in records),
    }


def draw(table: Table, out: Path) -> None:
    """The plots of one report."""
    usable = {scorer: figures.estimators_of(table, scorer) for scorer in table.decisiveness}
    total = sum(len(names) + 1 for names in usable.values() if names) + 1
    with common.Progress(total, "plots", unit="plot") as progress:
        for scorer, names in usable.items():
            if names:
                figures.plot_decisiveness(table, scorer, out / f"decisiveness_{scorer}.png")
                progress.update()
            for name in names:
                figures.plot_traces(table, scorer, name, out / f"traces_{scorer}_{name}.png")
                progress.update()
        figures.plot_agreement(table, out / "agreement.png")
        progress.update()
