"""The stages of a round as functions from files to files, each resumable: sample, annotate, pair, train, export.

A stage writes a manifest of its settings and input hashes. Run again with the same ones it goes on where it was
stopped, or does nothing if it was done; with others it raises UserError unless told to overwrite.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from caspo_jax.errors import UserError
from caspo_jax.models import load_caspo_json, load_pretrained, save_pretrained, token_bytes
from caspo_jax.preferences import PairConfig, build_candidates, select_pairs, tokenize_pairs
from caspo_jax.preferences.by_model import policy_competitors
from caspo_jax.preferences.packing import Row
from caspo_jax.preferences.readers import step_dpo_from_record, trl_from_record
from caspo_jax.records import (
    pair_from_record,
    pair_to_record,
    question_to_record,
    trace_from_record,
    trace_to_record,
    tree_to_record,
)
from caspo_jax.sampling import CatConfig, SampleConfig, cat_search, explore, generate, vote
from caspo_jax.sampling.votes import same_text
from caspo_jax.steps import Verifier, annotate_traces
from caspo_jax.store import (
    JsonlOutput,
    Manifest,
    hash_path,
    load_records,
    manifest_path,
    parse_at,
    read_jsonl,
    write_jsonl,
)
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.data import Plan, RowStore
from caspo_jax.training.loop import train
from caspo_jax.training.restore import restore_trained
from caspo_jax.types import CatTree, Pair, Question, Trace

Progress = Callable[[int, int], None]  # (done, in all)
Extract = Callable[[str], str | None]
Equal = Callable[[str, str], bool]


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy in memory with where it came from."""

    model: Any
    tokenizer: Any
    path: str
    hash: str
    settings: Mapping[str, Any]  # its caspo.json

    @classmethod
    def load(cls, path: str | Path, dtype: str | None = None, mesh: Any = None) -> Policy:
        """Load a policy folder (or hub id) once, for all the stages that read it."""
        model, tokenizer = load_pretrained(path, dtype=dtype, mesh=mesh)
        digest = hash_path(path) if Path(path).exists() else str(path)
        return cls(model, tokenizer, str(path), digest, load_caspo_json(path))

    @property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every token of the vocabulary."""
        return token_bytes(self.tokenizer, self.model.config.vocab_size)


def questions_digest(questions: Sequence[Question]) -> str:
    """A hash of the questions, for manifests."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(json.dumps(question_to_record(question), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _open(output: Path, program: str, config: Mapping[str, Any], overwrite: bool) -> JsonlOutput:
    manifest = Manifest.open(manifest_path(output), program=program, config=config, overwrite=overwrite)
    return JsonlOutput(output, manifest)


def sample_stage(
    policy: Policy,
    questions: Sequence[Question],
    output: str | Path,
    config: SampleConfig | CatConfig,
    *,
    strategy: str = "sample",
    seed: int = 0,
    batch_size: int = 64,
    token_stats: bool = True,
    trees: str | Path | None = None,
    answers: str | Path | None = None,
    extract: Extract | None = None,
    equal: Equal | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Questions to traces, written to `output` a group of questions at a time.

    Args:
      policy: who answers.
      questions: what is asked.
      output: JSONL of traces; their ids are the question's, with `/index` where there are several.
      config: a SampleConfig samples independent outputs, a CatConfig searches a tree.
      strategy: `greedy`, `sample`, `self_consistency` with a SampleConfig; `cat`, `explore` with a CatConfig.
      seed: of the sampling; a question's outputs depend on the seed and its id alone.
      batch_size: rows decoded together.
      token_stats: whether the records keep per-token log-probs and entropies.
      trees: JSONL for the search trees.
      answers: JSONL for one voted answer a question.
      extract: text -> answer; without it the traces carry none.
      equal: (gold, answer) -> bool.
      overwrite: start anew if the output was begun with other settings.
      progress: called with (questions done, questions in all).
    """
    output = Path(output)
    per_question = config.num_samples if isinstance(config, SampleConfig) else config.num_branches
    settings = {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "questions": questions_digest(questions),
        "sampling": dataclasses.asdict(config),
        "strategy": strategy,
        "seed": seed,
        "batch_size": batch_size,
        "token_stats": token_stats,
    }
    traces_out = _open(output, "sample", settings, overwrite)
    side = {
        name: _open(Path(path), name, settings, overwrite)
        for name, path in (("trees", trees), ("answers", answers))
        if path is not None
    }
    if traces_out.complete and all(out.complete for out in side.values()):
        return output
    size = max(1, batch_size // per_question) * 8
    groups = [questions[i : i + size] for i in range(0, len(questions), size)]
    key = jax.random.key(seed)
    for index, group in enumerate(groups):
        # Groups are fixed: a restart decodes the same questions together, since matrix products of another shape differ
        # in their last bits. The newest group may be torn, so it is decoded again and only what is missing is added.
        following = groups[index + 1] if index + 1 < len(groups) else []
        if not any(_trace_id(q, 0, per_question) in traces_out.done for q in following):
            sampled = _sample(policy, group, config, strategy, key, batch_size, extract, equal)
            if "trees" in side:
                side["trees"].append([tree_to_record(t) | {"id": t.question_id} for t in sampled.trees])
            if "answers" in side:
                side["answers"].append(sampled.answers)
            stamped = [
                dataclasses.replace(t, policy=policy.hash[:16], seed=seed, strategy=strategy)
                for t in sampled.traces
            ]
            traces_out.append([trace_to_record(t, token_stats=token_stats) for t in stamped])
        if progress is not None:
            progress(min((index + 1) * size, len(questions)), len(questions))
    for out in (*side.values(), traces_out):
        if not out.complete:
            out.finish(questions=len(questions), records=len(out.done))
    return output


def _trace_id(question: Question, index: int, per_question: int) -> str:
    return question.id if per_question == 1 else f"{question.id}/{index}"


@dataclasses.dataclass(frozen=True)
class _Sampled:
    traces: list[Trace]
    trees: list[CatTree]
    answers: list[dict[str, Any]]


def _sample(
    policy: Policy,
    questions: Sequence[Question],
    config: SampleConfig | CatConfig,
    strategy: str,
    key: jax.Array,
    batch_size: int,
    extract: Extract | None,
    equal: Equal | None,
) -> _Sampled:
    same = equal or same_text
    if isinstance(config, SampleConfig):
        flat = generate(policy.model, policy.tokenizer, questions, config, key, batch_size=batch_size)
        n = config.num_samples
        paths: list[Sequence[Trace]] = [flat[i : i + n] for i in range(0, len(flat), n)]
        trees: list[CatTree] = []
        method, gamma, per_question = "majority", 1.0, n
        tokens = [sum(len(t.token_ids) for t in group) for group in paths]
    else:
        search = explore if strategy == "explore" else cat_search
        results = search(policy.model, policy.tokenizer, questions, config, key, batch_size=batch_size)
        paths, trees, tokens = (
            [r.paths for r in results],
            [r.tree for r in results],
            [r.tokens for r in results],
        )
        method, gamma, per_question = config.vote, config.gamma, config.num_branches
    traces, answers = [], []
    for question, group, spent in zip(questions, paths, tokens, strict=True):
        named = [
            _answered(dataclasses.replace(t, id=_trace_id(question, i, per_question)), extract, equal)
            for i, t in enumerate(group)
        ]
        traces += named
        if extract is None:
            continue
        answer, votes = vote(named, method, extract=extract, equivalent=same, gamma=gamma)  # type: ignore[arg-type]
        right = None if question.gold is None else answer is not None and same(question.gold, answer)
        answers.append(
            {"id": question.id, "answer": answer, "correct": right, "tokens": spent, "votes": votes}
        )
    return _Sampled(traces, trees, answers)


def _answered(trace: Trace, extract: Extract | None, equal: Equal | None) -> Trace:
    if extract is None:
        return trace
    answer = extract(trace.text)
    correct = None
    if trace.gold is not None and equal is not None:
        correct = answer is not None and equal(trace.gold, answer)
    return dataclasses.replace(trace, answer=answer, correct=correct)


def annotate_stage(
    policy: Policy,
    traces: str | Path,
    output: str | Path,
    verifier: Verifier,
    *,
    extract: Extract,
    equal: Equal,
    confidence: str = "entropy",
    delimiter: str = "\n\n",
    batch_size: int = 256,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Traces to traces with steps, confidences, verdicts, answer and correctness.

    Args:
      policy: whose tokenizer wrote the traces.
      traces: JSONL of traces.
      output: JSONL of annotated traces.
      verifier: judges the steps.
      extract: text -> answer.
      equal: (gold, answer) -> bool.
      confidence: name of the step confidence; it must need no more than the traces' log-probs and entropies.
      delimiter: what ends a step.
      batch_size: traces a call of the verifier.
      overwrite: start anew if the output was begun with other settings.
      progress: called with (traces done, traces in all).
    """
    output = Path(output)
    loaded = load_records(traces, trace_from_record)
    if not loaded:
        raise UserError(f"{traces}: no traces in it")
    settings = {
        "traces": hash_path(traces),
        "verifier": verifier.name,
        "confidence": confidence,
        "delimiter": delimiter,
        "batch_size": batch_size,
    }
    written = _open(output, "annotate", settings, overwrite)
    if written.complete:
        return output
    spelled = policy.token_bytes
    for start in range(0, len(loaded), batch_size):
        part = loaded[start : start + batch_size]
        if not {t.id for t in part} <= written.done:
            done = annotate_traces(
                part,
                spelled,
                verifier=verifier,
                delimiter=delimiter,
                confidence=confidence,
                extract=extract,
                equal=equal,
            )
            written.append([trace_to_record(t) for t in done])
        if progress is not None:
            progress(min(start + batch_size, len(loaded)), len(loaded))
    written.finish(traces=len(loaded))
    return output


def pairs_stage(
    policy: Policy,
    annotated: str | Path,
    output: str | Path,
    config: PairConfig,
    verifier: Verifier,
    *,
    delimiter: str = "\n\n",
    max_step_tokens: int = 256,
    batch_size: int = 64,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Annotated traces to preference pairs.

    Args:
      policy: whose traces they are; it makes the competitors of low-confidence steps.
      annotated: JSONL of annotated traces.
      output: JSONL of pairs.
      config: which pairs.
      verifier: judges the competitors.
      delimiter: what ends a step.
      max_step_tokens: a competitor that goes on for longer is dropped.
      batch_size: rows on the device at once.
      overwrite: start anew if the output was made with other settings.

    Returns:
      What was counted: candidates, pairs of each kind, and everything dropped with its reason.
    """
    output = Path(output)
    settings = {
        "policy": policy.hash,
        "annotated": hash_path(annotated),
        "pairs": dataclasses.asdict(config),
        "verifier": verifier.name,
        "delimiter": delimiter,
        "max_step_tokens": max_step_tokens,
        "batch_size": batch_size,
    }
    manifest = Manifest.open(manifest_path(output), program="pairs", config=settings, overwrite=overwrite)
    if manifest.complete and output.exists():
        return manifest.contents["counts"]
    traces = load_records(annotated, trace_from_record)
    candidates, counts = build_candidates(traces)
    competitors = policy_competitors(
        policy.model,
        policy.tokenizer,
        verifier,
        delimiter=delimiter,
        max_new_tokens=max_step_tokens,
        batch_size=batch_size,
    )
    pairs, selected = select_pairs(candidates, config, competitors=competitors)
    write_jsonl(output, (pair_to_record(pair) for pair in pairs))
    counts = {"traces": len(traces), **counts, **selected, "pairs": len(pairs)}
    manifest.finish(**counts)
    return counts


def verified_traces(traces: Sequence[Trace]) -> list[Row]:
    """For each distinct trace its steps before the first that is not verified correct, as one row.

    A row holds all verified steps of a trace, so that the prefix they share is read once.
    """
    rows: dict[Row, None] = {}
    for trace in traces:
        right = list(itertools.takewhile(lambda s: s.verdict == "correct", trace.steps))
        if right:
            rows.setdefault((trace.prompt_ids, trace.token_ids[: right[-1].token_end]))
    return list(rows)


def train_stage(
    policy: Policy,
    pairs: str | Path,
    annotated: str | Path | None,
    run: str | Path,
    config: TrainConfig,
    *,
    overwrite: bool = False,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Pairs to a trained state, checkpointed in `run`.

    Args:
      policy: where training starts, and the reference.
      pairs: JSONL of pairs: ours, or Step-DPO-10K or TRL records, which are tokenised here.
      annotated: JSONL of annotated traces, for losses that read verified steps.
      run: folder of checkpoints, metrics and manifest.
      config: the recipe.
      overwrite: start anew if the run was begun with other settings.
      progress: called with (updates done, updates in all, **metrics).

    Returns:
      What the manifest counts: updates, pairs, verified rows, tokens, last metrics.
    """
    run = Path(run)
    if config.loss.uses_verified and annotated is None:
        raise UserError(
            f"loss={config.loss.loss}, nll_on={config.loss.nll_on} reads verified steps: give annotated traces"
        )
    settings = {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "train": dataclasses.asdict(config),
        "pairs": hash_path(pairs),
        "annotated": hash_path(annotated) if annotated is not None and config.loss.uses_verified else None,
    }
    if overwrite and run.exists() and _differs(run, settings):
        shutil.rmtree(run)
    manifest = Manifest.open(manifest_path(run), program="train", config=settings, overwrite=overwrite)
    if manifest.complete:
        return manifest.contents["counts"]
    loaded = read_pairs(pairs, policy.tokenizer, policy.settings.get("step_delimiter", "\n\n"))
    rows: list[Row] = []
    if config.loss.uses_verified and annotated is not None:
        rows = verified_traces(load_records(annotated, trace_from_record))
    callback = None
    if progress is not None:
        total = [0]

        def callback(record: Mapping[str, Any]) -> None:
            progress(int(record["step"]), total[0], loss=record["loss"])

        total[0] = Plan(RowStore.build(loaded, rows), config).steps
    _, summary = train(policy.model, loaded, config, verified=rows, out_dir=run, callback=callback)
    counts = {
        "updates": summary.steps,
        "pairs": summary.pairs,
        "verified_rows": summary.verified,
        "tokens": summary.tokens,
        "last": {
            k: round(float(v), 6)
            for k, v in summary.last.items()
            if k not in ("seconds", "tokens_per_second")
        },
    }
    manifest.finish(**counts)
    return counts


def _differs(run: Path, settings: Mapping[str, Any]) -> bool:
    path = manifest_path(run)
    if not path.is_file():
        return True
    return json.loads(path.read_text(encoding="utf-8")).get("config") != json.loads(json.dumps(settings))


def read_pairs(path: str | Path, tokenizer: Any, delimiter: str) -> list[Pair]:
    """Pairs of a JSONL file, in our format or, by their fields, in those of Step-DPO-10K and TRL.

    Raises:
      UserError: a malformed record (file:line), or no pairs at all.
    """
    pairs: list[Pair] = []
    foreign: list[Pair] = []
    for where, record in read_jsonl(path):
        if "chosen_ids" in record:
            pairs.append(parse_at(where, pair_from_record, record))
        elif "initial_reason_steps" in record:
            foreign.append(parse_at(where, step_dpo_from_record, record))
        else:
            foreign.append(parse_at(where, lambda r: trl_from_record(r, tokenizer), record))
    if foreign:
        pairs += tokenize_pairs(foreign, tokenizer, delimiter=delimiter)
    if not pairs:
        raise UserError(f"{path}: no pairs in it: nothing to train on")
    return pairs


def export_stage(policy: Policy, run: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """The newest checkpoint of a run to a policy folder in Hugging Face layout.

    Args:
      policy: the policy that the run started from; its tokenizer, configuration and caspo.json go along.
      run: folder of a training run.
      output: the policy folder.
      overwrite: replace a folder that another run's export wrote.
    """
    output = Path(output)
    settings = {"policy": policy.hash, "run": hash_path(Path(run) / "run.json")}
    if manifest_path(output).exists():
        manifest = Manifest.open(
            manifest_path(output), program="export", config=settings, overwrite=overwrite
        )
        if manifest.complete:
            return output
    model, updates = restore_trained(policy.model, run)
    save_pretrained(model, policy.tokenizer, output, caspo=policy.settings or None)
    manifest = Manifest.open(manifest_path(output), program="export", config=settings)
    manifest.finish(updates=updates)
    return output
