"""Finished faithfulness reports held together: two policies, or policies whose order is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import common

FLAGS = flags.FLAGS


def compare(folders: Sequence[Path], out: Path) -> None:
    """Two finished folders held together."""
    from caspo_jax.errors import UserError
    from caspo_jax.evaluation import faithfulness as f
    from caspo_jax.store import write_json, write_text

    if len(folders) != 2:
        raise UserError(f"--compare takes two folders, A,B, found {len(folders)}")
    first, second = (read_table(folder) for folder in folders)
    record = f.compare_record(first, second, FLAGS.draws, FLAGS.seed)
    record |= {"first": str(folders[0]), "second": str(folders[1])}
    text = f.render_comparison(record, str(folders[0]), str(folders[1]))
    write_json(out / "compare.json", record)
    write_text(out / "compare.txt", text)
    common.say(text)
    common.write_html_report(out, None)
    common.closing(
        f"comparison in {out / 'report.html'} and compare.json", {"questions": record["questions"]}
    )


def order(folders: Sequence[Path], out: Path) -> None:
    """Folders whose order is known: order.json, order.txt."""
    from caspo_jax.evaluation import faithfulness as f
    from caspo_jax.store import write_json, write_text

    record = f.ordering_record([read_report(folder) for folder in folders])
    text = f.render_ordering(record, [folder.name for folder in folders])
    write_json(out / "order.json", {"folders": [str(folder) for folder in folders], "order": record})
    write_text(out / "order.txt", text)
    common.say(text)
    common.closing(f"order in {out / 'order.json'}", {"folders": len(folders)})


def read_report(folder: Path) -> dict[str, Any]:
    """The report.json of a folder."""
    from caspo_jax.errors import UserError

    path = folder / "report.json"
    if not path.exists():
        raise UserError(f"{folder}: no report.json in it; run the report there first")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(report, dict) or (report.get("schema") or {}).get("name") != "faithfulness_report":
        raise UserError(f"{path}: not a faithfulness report; give folders that --traces wrote")
    return report


def read_table(folder: Path) -> Any:
    """The table of a folder; verdicts come from its steps.jsonl."""
    from caspo_jax.errors import UserError
    from caspo_jax.evaluation import faithfulness as f
    from caspo_jax.store import load_records

    for name in ("traces.jsonl", "steps.jsonl"):
        if not (folder / name).exists():
            raise UserError(f"{folder}: no {name} in it; run the report there first")
    verdicts: dict[str, list[bool | None]] = {}
    for trace, right in load_records(folder / "steps.jsonl", _verdict):
        verdicts.setdefault(trace, []).append(right)
    return f.build_table(load_records(folder / "traces.jsonl", f.subject_from_record), folder, verdicts)


def _verdict(step: dict[str, Any]) -> tuple[str, bool | None]:
    from caspo_jax.errors import UserError

    if step["right"] not in (True, False, None):
        raise UserError(f"`right` must be true, false or null, found {step['right']!r:.40}")
    return str(step["trace_id"]), step["right"]
