"""Finished faithfulness reports compared: two policies, or policies whose order is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.errors import UserError
from caspo_jax.evaluation import faithfulness as f
from caspo_jax.evaluation.faithfulness import Table
from caspo_jax.records import schema, schema_name
from caspo_jax.store import load_records, read_json, write_json, write_text
from experiments import common, result_files

FLAGS = flags.FLAGS
# Of a finished folder, what a comparison is made of; some stages may have been left out.
READ = ("traces", "steps", "decisiveness", "token", "hidden", "prefix", "probe")


def compare(folders: Sequence[Path], out: Path) -> None:
    """Two finished folders compared."""
    if len(folders) != 2:
        raise UserError(f"--compare takes two folders, A,B, found {len(folders)}")
    first, second = (read_table(folder) for folder in folders)
    manifest = result_files.claim_files(
        [out / "compare.json", out / "compare.txt", out / "report.html"],
        "faithfulness/compare",
        {"folders": [str(folder) for folder in folders], "draws": FLAGS.draws, "seed": FLAGS.seed},
        {
            f"{side}/{name}": file
            for side, folder in zip(("first", "second"), folders, strict=True)
            for name in READ
            if (file := folder / f"{name}.jsonl").exists()
        },
    )
    record = {
        "schema": schema("faithfulness_compare"),
        **f.compare_record(first, second, FLAGS.draws, FLAGS.seed),
        "first": str(folders[0]),
        "second": str(folders[1]),
    }
    text = f.render_comparison(record, str(folders[0]), str(folders[1]))
    write_json(out / "compare.json", record)
    write_text(out / "compare.txt", text)
    common.say(text)
    common.write_html_report(out, None)
    manifest.finish(questions=record["questions"])
    common.closing(
        f"comparison in {out / 'report.html'} and compare.json", {"questions": record["questions"]}
    )


def order(folders: Sequence[Path], out: Path) -> None:
    """Folders whose order is known: order.json, order.txt."""
    record = f.ordering_record([read_report(folder) for folder in folders])
    names = [str(folder) for folder in folders]
    manifest = result_files.claim_files(
        [out / "order.json", out / "order.txt"],
        "faithfulness/order",
        {"folders": names},
        {f"{place}/report": folder / "report.json" for place, folder in enumerate(folders)},
    )
    text = f.render_ordering(record, [folder.name for folder in folders])
    write_json(
        out / "order.json", {"schema": schema("faithfulness_order"), "folders": names, "order": record}
    )
    write_text(out / "order.txt", text)
    manifest.finish(folders=len(folders))
    common.say(text)
    common.closing(f"order in {out / 'order.json'}", {"folders": len(folders)})


def read_report(folder: Path) -> dict[str, Any]:
    """The report.json of a folder."""
    path = folder / "report.json"
    if not path.exists():
        raise UserError(f"{folder}: no report.json in it; run the report there first")
    report = read_json(path)
    if schema_name(report) != "faithfulness_report":
        raise UserError(f"{path}: not a faithfulness report; give folders that --traces wrote")
    return report


def read_table(folder: Path) -> Table:
    """The table of a folder; verdicts come from its steps.jsonl."""
    for name in ("traces.jsonl", "steps.jsonl"):
        if not (folder / name).exists():
            raise UserError(f"{folder}: no {name} in it; run the report there first")
    verdicts: dict[str, list[bool | None]] = {}
    for trace, right in load_records(folder / "steps.jsonl", _verdict):
        verdicts.setdefault(trace, []).append(right)
    return f.build_table(load_records(folder / "traces.jsonl", f.subject_from_record), folder, verdicts)


def _verdict(step: dict[str, Any]) -> tuple[str, bool | None]:
    if step["right"] not in (True, False, None):
        raise UserError(f"`right` must be true, false or null, found {step['right']!r:.40}")
    return str(step["trace_id"]), step["right"]
