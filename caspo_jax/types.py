"""The records that cross rooms: plain frozen data, no behaviour beyond derived properties."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

Verdict = Literal["correct", "wrong", "unknown"]
FinishReason = Literal["eos", "stop", "length", "pruned", "budget"]
PairKind = Literal["low_confidence_correct", "wrong"]

VERDICTS: tuple[Verdict, ...] = ("correct", "wrong", "unknown")
DEFAULT_DELIMITER = "\n\n"  # what ends a step, unless a policy or a user says otherwise
OPEN_THOUGHT, CLOSE_THOUGHT = "<think>", "</think>"  # around what a model considers before it answers

Extract = Callable[[str], str | None]  # text -> the answer that it gives
Equal = Callable[[str, str], bool]  # (gold, answer)
Progress = Callable[[int, int], None]  # (done, in all)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question to answer.

    At least one of `question`, `prompt`, `prompt_ids` is set. `prompt` is final text (no template is
    applied); `prompt_ids` are used verbatim (no BOS, no template).
    """

    id: str
    question: str | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    gold: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    where: str | None = dataclasses.field(default=None, compare=False)  # file:line it was read from

    @property
    def name(self) -> str:
        """What messages call it: by its file and line too, where it has them."""
        return f"{self.where}: question {self.id!r}" if self.where else f"question {self.id!r}"


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a trace (docs/design.md, section 2): `token_end` includes the delimiter, `end` does not."""

    start: int  # first character of the step in Trace.text
    end: int  # one past its last character, delimiter excluded
    token_start: int  # first token in Trace.token_ids
    token_end: int  # one past its last token, delimiter included
    text: str  # Trace.text[start:end]
    confidence: float | None = None  # the named step confidence, (0, 1] for `entropy`
    entropy: float | None = None  # mean token entropy u, nats, delimiter tokens left out
    verdict: Verdict = "unknown"
    verifier: str | None = None  # name of the verifier that gave the verdict


@dataclasses.dataclass(frozen=True)
class Trace:
    """One model output for one question."""

    id: str
    question: str | None
    gold: str | None
    prompt: str | None
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # the emitted tokens, EOS included if it was emitted
    text: str  # decoded without special tokens
    finish_reason: FinishReason
    answer: str | None = None
    correct: bool | None = None
    policy: str | None = None  # path or hash of the policy that wrote it
    seed: int | None = None
    strategy: str | None = None
    path_confidence: float | None = None
    steps: tuple[Step, ...] = ()
    logprob: tuple[float, ...] | None = None  # [T] temperature-1 log-prob of each emitted token, nats
    entropy: tuple[float, ...] | None = None  # [T] of the temperature-1, full-vocabulary distribution, nats


@dataclasses.dataclass(frozen=True)
class Pair:
    """One step-level preference: `chosen` over `rejected`, both continuing prompt + prefix.

    The ids are the sampler's own and are never re-tokenised; the texts are for people and other tools.
    """

    id: str
    kind: PairKind
    prompt: str
    prefix: str
    chosen: str
    rejected: str
    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]  # tokens of the steps before, prompt not included
    chosen_ids: tuple[int, ...]  # the step with its delimiter (and EOS only if the step ended its trace)
    rejected_ids: tuple[int, ...]
    ends_trace: tuple[bool, bool]  # (chosen, rejected)
    chosen_confidence: float | None = None
    rejected_confidence: float | None = None
    chosen_verdict: Verdict = "unknown"
    rejected_verdict: Verdict = "unknown"
    trace_id: str | None = None
    step_index: int | None = None
    weight: float = 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepRows:
    """Rows of prompt + prefix + step on the device; the loss looks at the step's tokens alone."""

    token_ids: jax.Array  # [B, T] int32
    mask: jax.Array  # [B, T] bool, real tokens
    step_mask: jax.Array  # [B, T] bool, tokens of the step (delimiter and true EOS included)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairBatch:
    """A batch of preference pairs as device arrays.

    Rows may be padding: their `weight` is 0 and their step masks are empty.
    """

    chosen: StepRows  # [B, T]
    rejected: StepRows  # [B, T]
    weight: jax.Array  # [B] float32
    reference_chosen: jax.Array  # [B] float32, masked sum of the reference's log-probs
    reference_rejected: jax.Array  # [B] float32
    verified: StepRows | None = None  # [M, T] verified-correct steps for the NLL term and the rft control


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TreeBatch:
    """Pairs and verified steps as token trees: what several of them begin with is there once.

    A row holds trees side by side, each in depth-first preorder, so that token k precedes token q in a sequence
    exactly if `k <= q < subtree_end[k]`. Scored tokens stand in slots; an item (the chosen or rejected step of a pair,
    or a verified step) is a set of slots. Items of a row: P chosen, P rejected, V verified; any may be padding.
    """

    token_ids: jax.Array  # [R, T] int32
    positions: jax.Array  # [R, T] int32, tokens before it in its sequence
    subtree_end: jax.Array  # [R, T] int32, one past the column of its last descendant; 0 in padding
    target: jax.Array  # [R, S] int32, token id scored in a slot; slots are filled from the left
    predictor: jax.Array  # [R, S] int32, column of the token before it
    target_mask: jax.Array  # [R, S] bool
    member_slot: jax.Array  # [R, M] int32, a slot ...
    member_item: jax.Array  # [R, M] int32, ... and the item it belongs to; 2P + V in padding
    weight: jax.Array  # [R, P] float32, 0 in padding
    reference_chosen: jax.Array  # [R, P] float32
    reference_rejected: jax.Array  # [R, P] float32
    verified: jax.Array  # [R, V] bool, False in padding


@dataclasses.dataclass(frozen=True)
class CatNode:
    """One node of a CaT tree: a step, or the unfinished rest of a path."""

    parent: int  # index in the tree's list of nodes, -1 for a child of the root
    token_ids: tuple[int, ...]
    logprob: tuple[float, ...]
    entropy: tuple[float, ...]
    confidence: float | None  # step confidence; None where the node holds no step of its own
    path_confidence: float | None
    status: Literal["live", "closed", "pruned", "finished", "expired"]
    reason: str | None  # why it ended: eos, stop, length, budget, threshold, ...


@dataclasses.dataclass(frozen=True)
class CatTree:
    """The search tree of one question (docs/formats.md, `tree` record)."""

    question_id: str
    prompt_ids: tuple[int, ...]
    nodes: tuple[CatNode, ...]
    key: tuple[int, ...]  # raw data of the question's PRNG key
    threshold: float | None


@dataclasses.dataclass(frozen=True)
class CatResult:
    """What a CaT search gives back for one question."""

    question_id: str
    answer: str | None
    paths: tuple[Trace, ...]  # finished paths, in node order
    tree: CatTree
    tokens: int  # tokens decoded over all slots, forks' own tokens included
    votes: Mapping[str, float] = dataclasses.field(default_factory=dict)
