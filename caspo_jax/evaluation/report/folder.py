"""A run's folder to what the report shows of it: records, summaries, manifests, metrics and pictures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.report.beside import Beside, completed, decisiveness_of, read_beside
from caspo_jax.evaluation.report.choice import choose
from caspo_jax.records import check_schema, pair_from_record, schema_name, trace_from_record, tree_from_record
from caspo_jax.records.values import read_number
from caspo_jax.store import load_records, read_json, read_jsonl, read_value
from caspo_jax.types import Pair, Trace

# What training and checkpoints leave behind is no result; a policy folder is looked at for its tokenizer alone.
_SKIPPED = ("checkpoints", "tensorboard", "policy", "dataset")
# Held-out samples that a program keeps for the report; shown before the data of training rounds.
SAMPLES = "samples/"
_SCHEMAS = ("trace", "tree", "pair", "pair_score", "metrics")


@dataclasses.dataclass(frozen=True)
class TraceFile:
    """The traces of one file, and what a step of theirs carries beside the record's own fields."""

    name: str  # path inside the run, without suffix
    traces: Sequence[Trace]
    beside: Sequence[Beside]  # of each trace


@dataclasses.dataclass(frozen=True)
class TreeFile:
    """The search trees of one file, as records (docs/formats.md)."""

    name: str
    trees: Sequence[Mapping[str, Any]]
    vote: str  # how the search voted, "sequence" where nothing says
    gamma: float = 1.0  # exponent of the `confidence` vote, 1 where nothing says
    kind: str | None = None  # of the answers, where the manifest says


@dataclasses.dataclass(frozen=True)
class PairFile:
    """The preference pairs of one file."""

    name: str
    pairs: Sequence[Pair]


@dataclasses.dataclass(frozen=True)
class Run:
    """One folder. Scores: pair id -> [(policy, chosen log-probs, rejected log-probs)]."""

    name: str
    path: Path
    summaries: Mapping[str, Any]
    manifests: Mapping[str, Mapping[str, Any]]
    traces: Sequence[TraceFile]
    trees: Sequence[TreeFile]
    pairs: Sequence[PairFile]
    scores: Mapping[str, Sequence[tuple[str, list[float], list[float]]]]
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    pictures: Sequence[Path]
    policies: Sequence[Path]  # folders that hold a tokenizer

    @property
    def summary(self) -> Mapping[str, Any]:
        """The main summary, empty if there is none, or if it is no record."""
        return _main(self.summaries)


def load_run(path: str | Path, name: str | None = None, most_traces: int | None = None) -> Run:
    """Read a run's folder; files are known by the schema of their records, not by their names.

    `annotated.jsonl` hides the `traces.jsonl` beside it, which it contains.

    Args:
      path: the folder.
      name: of the run; default the folder's own.
      most_traces: of one file, as many as the page shows: the others keep no statistics of their tokens. Those of all
        rounds take more memory than everything else. Default: all keep them.

    Raises:
      UserError: no such folder, one that cannot be read, a malformed record (names file:line), or nothing to report in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    traces: list[TraceFile] = []
    trees: list[TreeFile] = []
    pairs: list[PairFile] = []
    scores: dict[str, list[tuple[str, list[float], list[float]]]] = {}
    metrics: dict[str, list[dict[str, Any]]] = {}
    for file in _files(path, ".jsonl"):
        label = file.relative_to(path).with_suffix("").as_posix()
        kind = _schema(file)
        if kind == "trace" and not _contained(file):
            traces.append(_trace_file(file, label, most_traces))
        elif kind == "tree":
            trees.append(_tree_file(file, label, load_records(file, _tree)))
        elif kind == "pair":
            pairs.append(PairFile(label, load_records(file, pair_from_record)))
        elif kind == "pair_score":
            for pair, score in load_records(file, _score):
                scores.setdefault(pair, []).append(score)
        elif kind == "metrics":
            metrics[label] = load_records(file, dict)
    for files in (traces, trees, pairs):
        files.sort(key=lambda f: not f.name.startswith(SAMPLES))
    summaries = {}
    for file in sorted(path.glob("*.json")):
        if not file.name.endswith("manifest.json"):
            summaries[file.stem] = read_value(file)
    run = Run(
        name=name or path.resolve().name,
        path=path,
        summaries=summaries,
        manifests={f.relative_to(path).as_posix(): _manifest(f) for f in _files(path, "manifest.json")},
        traces=traces,
        trees=trees,
        pairs=pairs,
        scores=scores,
        metrics=metrics,
        pictures=sorted(path.glob("*.png")),
        policies=_policies(path, _main(summaries)),
    )
    if not (summaries or traces or trees or pairs or metrics):
        raise UserError(f"{path}: no summary and no records of traces, trees or pairs to report")
    return run


def _files(folder: Path, suffix: str) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    found = []
    for inside, folders, names in os.walk(folder, onerror=refuse):  # `rglob` passes over what it cannot read
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        found += [Path(inside, name) for name in names if name.endswith(suffix) and not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _manifest(file: Path) -> dict[str, Any]:
    """A manifest, or a refusal by the file's name of what none of ours holds."""
    contents = read_json(file)
    versions = contents.get("versions") or {}
    if not isinstance(versions, Mapping) or not all(isinstance(v, str) for v in versions.values()):
        raise UserError(f"{file}: `versions` of a manifest must be texts by name, found {versions!r:.60}")
    if not isinstance(contents.get("counts") or {}, Mapping):
        raise UserError(f"{file}: `counts` of a manifest must be an object, found {contents['counts']!r:.60}")
    read_number(contents, "seconds", f"{file}: ")
    return contents


def _schema(file: Path) -> str | None:
    """The schema that the file's first record names."""
    for _, record in read_jsonl(file):
        name = schema_name(record)
        return name if name in _SCHEMAS else None
    return None


def _contained(file: Path) -> bool:
    return file.name == "traces.jsonl" and file.with_name("annotated.jsonl").is_file()


def _trace_file(file: Path, label: str, most: int | None) -> TraceFile:
    known = read_beside(file)

    def parse(record: dict[str, Any]) -> tuple[Trace, Beside]:
        trace = trace_from_record(record)
        own = Beside([decisiveness_of(step.get("decisiveness")) for step in record.get("steps") or ()])
        found = known.get(trace.id, own)
        return completed(trace, found), found

    read = load_records(file, parse)
    traces = [trace for trace, _ in read]
    if most is not None:
        shown = set(choose(traces, most))
        for i in set(range(len(traces))) - shown:
            traces[i] = dataclasses.replace(traces[i], logprob=None, entropy=None)
    return TraceFile(label, traces, [beside for _, beside in read])


def _tree(record: dict[str, Any]) -> dict[str, Any]:
    tree_from_record(record)  # refuses what is malformed
    if not isinstance(record.get("votes", {}), Mapping):
        raise UserError(f"`votes` of a tree must be weights by answer, found {record['votes']!r:.60}")
    return record


def _score(record: dict[str, Any]) -> tuple[str, tuple[str, list[float], list[float]]]:
    check_schema(record, "pair_score")
    return str(record["pair"]), (
        str(record["policy"]),
        [float(v) for v in record["chosen_logprob"]],
        [float(v) for v in record["rejected_logprob"]],
    )


def _main(summaries: Mapping[str, Any]) -> Mapping[str, Any]:
    found = summaries.get("summary")
    return found if isinstance(found, Mapping) else {}


def _tree_file(file: Path, label: str, records: Sequence[Mapping[str, Any]]) -> TreeFile:
    """With how the search voted: as its records say, or its manifest."""
    manifest = file.with_name(file.name + ".manifest.json")
    config = read_json(manifest).get("config", {}) if manifest.is_file() else {}
    said = config.get("sampling", {}) | {k: v for k, v in records[0].items() if v is not None}
    vote, gamma = said.get("vote", "sequence"), said.get("gamma", 1.0)
    if isinstance(gamma, bool) or not isinstance(gamma, int | float):
        raise UserError(f"{file}: `gamma` of a tree must be a number, found {gamma!r:.60}")
    return TreeFile(label, records, vote, float(gamma), config.get("answers"))


def _policies(path: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Folders whose tokenizer may have written the traces: the run's own, then those that its summary names."""
    found = [p.parent for p in sorted(path.rglob("tokenizer.json"))]
    for policy in summary.get("policies") or ():
        folder = Path(str(policy.get("path", ""))) if isinstance(policy, Mapping) else Path()
        if (folder / "tokenizer.json").is_file():
            found.append(folder)
    return list(dict.fromkeys(found))
