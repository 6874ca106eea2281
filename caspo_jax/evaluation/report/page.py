"""Runs to one self-contained HTML file: no network, nothing of a model's text ever executed."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.report.cells import number_text
from caspo_jax.evaluation.report.encode import script_json
from caspo_jax.evaluation.report.figures import run_figures
from caspo_jax.evaluation.report.folder import Run, load_run
from caspo_jax.evaluation.report.headline import headlines
from caspo_jax.evaluation.report.pair_view import view_pairs
from caspo_jax.evaluation.report.spelling import Spellings
from caspo_jax.evaluation.report.tables import facts, run_tables
from caspo_jax.evaluation.report.trace_view import view_traces
from caspo_jax.evaluation.report.tree_view import view_trees
from caspo_jax.store import writable, write_text

_HERE = Path(__file__).parent
# In this order they are one script; each file is one viewer.
_SCRIPTS = ("core", "text", "said", "list", "tables", "traces", "trees", "pairs", "start")
_START = "<!doctype html>"
_MARK = '<meta name="generator" content="caspo_jax">'  # which pages a report may replace
MOST_TRACES = 10_000  # of one file
MOST_TREES = 200
MOST_PAIRS = 1000
_RENDERED = 6  # parts of a page: traces, trees, pairs, tables, figures, and all of it put together


def write_report(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    title: str | None = None,
    tokenizer: str | Path | None = None,
    most_traces: int = MOST_TRACES,
    progress: Callable[[int, int], Any] | None = None,
) -> Path:
    """Write `output` from the folders of one or several runs; the same files give the same bytes.

    Args:
      runs: folders that the programs wrote; what is in them is found by itself (`load_run`).
      output: the HTML file.
      title: heading; default the runs' names.
      tokenizer: folder of the tokenizer that wrote the records, where the runs hold none.
      most_traces: traces shown of one file.
      progress: called with (parts done, parts in all): each run is read, then each kind of contents is made.

    Raises:
      UserError: a folder that is not there or holds nothing to report, a malformed record.
    """
    if isinstance(runs, str | Path):
        raise UserError(f"runs={str(runs)!r} is one folder: give a list of them")
    if not runs:
        raise UserError("a report needs at least one run's folder")
    parts = itertools.count(1)

    def made() -> None:
        if progress is not None:
            progress(next(parts), len(runs) + _RENDERED)

    loaded = []
    for path, name in zip(runs, _names(runs), strict=True):
        loaded.append(load_run(path, name, most_traces))
        made()
    page = render(loaded, title=title, tokenizer=tokenizer, most_traces=most_traces, made=made)
    write_text(output, page)
    return Path(output)


def is_report(path: str | Path) -> bool:
    """Whether `write_report` made a file: its reports say so near their start.

    Args:
      path: the file.

    Raises:
      OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    return head.startswith(_START.encode()) and _MARK.encode() in head


def _names(paths: Sequence[str | Path]) -> list[str]:
    """The folders' names, with as many of their parents as it takes to tell them apart."""
    parts = [Path(p).resolve().parts for p in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same run's folder is given twice")


def render(
    runs: Sequence[Run],
    *,
    title: str | None = None,
    tokenizer: str | Path | None = None,
    most_traces: int = MOST_TRACES,
    made: Callable[[], Any] = lambda: None,
) -> str:
    """The page; `made` is called after each of its parts."""
    import jinja2

    given = [Path(tokenizer)] if tokenizer is not None else []
    spellings = {run.name: Spellings([*given, *run.policies]) for run in runs}
    traces = view_traces(runs, spellings, most_traces)
    made()
    trees = view_trees(runs, spellings, traces.names, MOST_TREES)
    made()
    pairs = view_pairs(runs, spellings, traces.names, MOST_PAIRS)
    made()
    tables = run_tables(runs)
    made()
    figures = [(run.name, run_figures(run)) for run in runs]
    made()
    data = {
        "traces": script_json(
            {"sets": traces.sets, "questions": traces.questions, "index": traces.index, "names": traces.names}
        ),
        "trees": script_json(trees),
        "pairs": script_json(pairs),
    }
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    script = _script()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.jinja").render(
        title=title or " and ".join(run.name for run in runs),
        mark=_MARK,
        policy=_content_policy(style, script),
        style=style,
        script=script,
        runs=[_run(run) for run in runs],
        several=len(runs) > 1,
        tables=tables,
        figures=figures,
        counts={
            "traces": len(traces.index["id"]),
            "trees": len(trees["trees"]),
            "pairs": len(pairs["pairs"]),
        },
        data=data,
        chunks=[script_json(chunk) for chunk in traces.chunks],
    )
    made()
    return writable(page)


def _script() -> str:
    parts = [(_HERE / "script" / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


def _content_policy(style: str, script: str) -> str:
    """No network at all; of scripts and styles only the page's own, known by their hashes."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {source(script)}; style-src {source(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _run(run: Run) -> dict[str, Any]:
    """Name, facts and provenance."""
    manifests = []
    for path, contents in run.manifests.items():
        counts = contents.get("counts") or {}
        manifests.append(
            {
                "path": path,
                "program": contents.get("program", "?"),
                "complete": bool(contents.get("complete")),
                "seconds": contents.get("seconds") or 0.0,
                "counts": ", ".join(
                    f"{k.replace('_', ' ')} {number_text(v)}"
                    for k, v in counts.items()
                    if isinstance(v, (int, float, str)) and v
                ),
                "detail": json.dumps(
                    {k: contents[k] for k in ("config", "inputs") if contents.get(k)},
                    indent=2,
                    ensure_ascii=False,
                ),
            }
        )
    versions: dict[str, list[str]] = {}
    for contents in run.manifests.values():
        for name, version in (contents.get("versions") or {}).items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    return {
        "name": run.name,
        "headlines": headlines(run),
        "facts": facts(run),
        "manifests": manifests,
        "versions": [(name, ", ".join(found)) for name, found in versions.items()],
        "pictures": [
            (p.stem, "data:image/png;base64," + base64.b64encode(p.read_bytes()).decode())
            for p in run.pictures
        ],
    }
