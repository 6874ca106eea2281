"""The policy that a stage works with, and what the stages share."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax import nnx

from caspo_jax.distributed import from_writer
from caspo_jax.errors import UserError
from caspo_jax.models import (
    ModelConfig,
    check_prompt_ids,
    hash_checkpoint,
    load_caspo_json,
    load_pretrained,
    load_tokenizer,
    resolve_folder,
    token_bytes,
)
from caspo_jax.models.tokenizer import find_tokenizer
from caspo_jax.outputs import ROWS, JsonlOutput, Manifest, manifest_path
from caspo_jax.records import question_to_record, schema, trace_from_record, trace_to_record
from caspo_jax.store import each_record
from caspo_jax.types import DEFAULT_DELIMITER, Progress, Question, Trace

# Of the traces that are annotated together: a verifier that decodes reads each of their prefixes, which takes host memory as
# the square of a trace's length, and a kill loses what it has not said of all of them.
_BATCH_TOKENS = 1 << 18
_Item = TypeVar("_Item")


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
        folder = resolve_folder(path)
        model, tokenizer = load_pretrained(folder, dtype=dtype, mesh=mesh)
        digest = from_writer("policy", lambda: hash_checkpoint(folder))
        return cls(model, tokenizer, str(path), digest, load_caspo_json(folder))

    @classmethod
    def without_weights(cls, path: str | Path) -> Policy:
        """Tokenizer, settings and `model.config` alone, to plan with: nothing is on a device, and there is no hash."""
        folder = resolve_folder(path)
        model = types.SimpleNamespace(config=ModelConfig.from_hf(folder))
        tokenizer = load_tokenizer(folder) if find_tokenizer(folder) else None
        return cls(model, tokenizer, str(path), "", load_caspo_json(folder))

    def readable(self, dtype: str | None = None, mesh: Any = None) -> Policy:
        """This policy; its weights are loaded again, as `load` did, if a run was given them."""
        if not any(leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(self.model))):
            return self
        model, _ = load_pretrained(resolve_folder(self.path), dtype=dtype, mesh=mesh)
        return dataclasses.replace(self, model=model)

    def each_trace(
        self, path: str | Path, *, prompts: bool = True, check: Callable[[Trace], object] | None = None
    ) -> Iterator[Trace]:
        """The traces of a JSONL file, one after the other, their token ids checked against this policy's vocabulary and context.

        Args:
          path: JSONL of traces.
          prompts: whether a trace must have prompt ids; without, one may lack the field.
          check: what else a trace must be: raises UserError for one that is not.

        Raises:
          UserError: a malformed record, token ids that the policy cannot read, a trace's id that was used before or
            what `check` says (file:line), or no traces at all.
        """
        seen: set[str] = set()

        def parse(record: dict[str, Any]) -> Trace:
            trace = trace_from_record(record)
            if prompts or "prompt_ids" in record:
                self.check_ids(trace.prompt_ids, trace.token_ids)
            if trace.id in seen:
                raise UserError(
                    f"id {trace.id!r} was used before: give every trace its own, such as q/0, q/1"
                )
            seen.add(trace.id)
            if check is not None:
                check(trace)
            return trace

        yield from each_record(path, parse)
        if not seen:
            raise UserError(f"{path}: no traces in it")

    def check_ids(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> None:
        """Refuses an empty prompt, ids outside the vocabulary, and rows longer than the context."""
        config = self.model.config
        check_prompt_ids(prompt_ids, config, "prompt_ids")
        check_prompt_ids([*prompt_ids, *token_ids], config, "prompt and output")

    @property
    def step_delimiter(self) -> str:
        """What ends a step of this policy's outputs: as its caspo.json has it, else two newlines."""
        return self.settings.get("step_delimiter", DEFAULT_DELIMITER)

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every token of the vocabulary."""
        return token_bytes(self.tokenizer, self.model.config.vocab_size)


def questions_digest(questions: Sequence[Question]) -> str:
    """A hash of the questions, for manifests."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(json.dumps(question_to_record(question), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def open_output(
    output: str | Path,
    program: str,
    config: Mapping[str, Any],
    overwrite: bool,
    kind: str | None = None,
) -> JsonlOutput:
    """The JSONL of a stage, with its manifest beside it; `kind` names the schema of records without one."""
    manifest = Manifest.open(
        manifest_path(output), program=program, config=config, free=ROWS, overwrite=overwrite
    )
    return JsonlOutput(output, manifest, schema=None if kind is None else schema(kind))


def write_annotated(
    written: JsonlOutput,
    traces: Iterable[Trace],
    total: int,
    annotate: Callable[[Sequence[Trace]], Sequence[Trace]],
    batch_size: int,
    progress: Progress | None,
) -> None:
    """Annotates traces, `total` of them, a batch at a time, those that are written already left out, and completes the output.

    A batch has at most `batch_size` traces, and of long ones fewer.
    """
    done = 0
    for part in batches(traces, batch_size, _BATCH_TOKENS, lambda trace: len(trace.token_ids)):
        if not {trace.id for trace in part} <= written.done:
            written.append([trace_to_record(trace) for trace in annotate(part)])
        done += len(part)
        if progress is not None:
            progress(done, total)
    written.finish(traces=total)


def batches(
    items: Iterable[_Item], most: int, most_tokens: int, tokens_of: Callable[[_Item], int]
) -> Iterator[list[_Item]]:
    """The items in order, `most` at once, and fewer where they have more than `most_tokens` tokens together."""
    batch: list[_Item] = []
    tokens = 0
    for item in items:
        own = tokens_of(item)
        if batch and tokens + own > most_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += own
        if len(batch) == most:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def check_delimiter(delimiter: str) -> None:
    """Refuses an empty delimiter before an output is begun with it."""
    if not delimiter:
        raise UserError("step_delimiter is empty: give at least one character")
