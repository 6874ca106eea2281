"""Questions to traces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from caspo_jax.errors import UserError
from caspo_jax.models import check_prompt_ids, encode_prompt
from caspo_jax.preferences import tree_traces
from caspo_jax.records import search_to_record, trace_to_record
from caspo_jax.sampling import CatConfig, SampleConfig, cat_search, explore, generate, vote
from caspo_jax.sampling.config import Vote
from caspo_jax.sampling.room import SHARE, default_rows
from caspo_jax.sampling.votes import last_line, same_text
from caspo_jax.steps import with_answer
from caspo_jax.training.stages.decoding_progress import DecodingProgress
from caspo_jax.training.stages.policy import Policy, open_output, questions_digest
from caspo_jax.types import Equal, Extract, Question, Trace

SAMPLED: Sequence[str] = ("greedy", "sample", "self_consistency")  # strategies of a SampleConfig
SEARCHED: Sequence[str] = ("cat", "explore")  # and of a CatConfig
_MOST_PADDING = 0.15  # of the longest row, prompt and output, that a group may be given so that it shares another's programs


def sample_stage(
    policy: Policy,
    questions: Sequence[Question],
    output: str | Path,
    config: SampleConfig | CatConfig,
    *,
    strategy: str = "sample",
    seed: int = 0,
    batch_size: int | None = None,
    token_stats: bool = True,
    trees: str | Path | None = None,
    answers: str | Path | None = None,
    extract: Extract | None = None,
    equal: Equal | None = None,
    answer_kind: str | None = None,
    instruction: str | None = None,
    overwrite: bool = False,
    progress: Callable[..., None] | None = None,
) -> Path:
    """Questions to traces, written to `output` a group of questions at a time.

    Args:
      policy: who answers.
      questions: what is asked.
      output: JSONL of traces; their ids are the question's, with `/index` where there are several. Of an exploration
        also the branches that it left open, after the question's finished paths and without an answer.
      config: a SampleConfig samples independent outputs, a CatConfig searches a tree.
      strategy: `greedy`, `sample`, `self_consistency` with a SampleConfig; `cat`, `explore` with a CatConfig.
      seed: of the sampling; a question's outputs depend on the seed and its id alone.
      batch_size: rows decoded together (default: by memory; a restart takes as many as the run that it goes on with, or
        what a smaller device has room for).
      token_stats: whether the records keep per-token log-probs and entropies.
      trees: JSONL for the search trees.
      answers: JSONL for one voted answer a question.
      extract: text -> answer; without it the traces carry none.
      equal: (gold, answer) -> bool.
      answer_kind: what the manifest calls the two.
      instruction: what the questions end with, for the reader of the manifest.
      overwrite: start anew if the output was begun with other settings.
      progress: called with (questions done, questions in all) and by name `tokens`, those that this call has decoded, and
        `tokens_per_second`, from its second look on: until the first one it mostly compiles.

    Raises:
      UserError: a strategy that does not go with the config; a question that the policy cannot be asked.
    """
    output = Path(output)
    if isinstance(config, SampleConfig):
        known, decoding, per_question = SAMPLED, config, config.num_samples
    else:
        known, decoding, per_question = SEARCHED, config.sample, config.num_branches
    if strategy not in known:
        raise UserError(
            f"strategy={strategy!r}: with a {type(config).__name__} it is one of {', '.join(known)}"
        )
    settings = {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "questions": questions_digest(questions),
        "sampling": dataclasses.asdict(config),
        "strategy": strategy,
        "seed": seed,
        "token_stats": token_stats,
        "answers": answer_kind,
    }
    if instruction is not None:
        settings["instruction"] = instruction
    # All of them before anything is written or decoded: a question that cannot be asked is not found out hours later.
    lengths = []
    for question in questions:
        prompt = encode_prompt(policy.tokenizer, question)
        check_prompt_ids(prompt, policy.model.config, question.name, decoding.max_new_tokens)
        lengths.append(len(prompt))
    room = batch_size
    if room is None:
        split = isinstance(config, SampleConfig)
        room, _ = default_rows(
            policy.model, max(lengths, default=1), decoding.max_new_tokens, per_question, split
        )
    settings["batch_size"] = room
    traces_out = open_output(output, "sample", settings, overwrite)
    side = {
        name: open_output(Path(path), name, settings, overwrite, kind)
        for name, path, kind in (("trees", trees, "tree"), ("answers", answers, "vote"))
        if path is not None
    }
    unfinished = {name: out for name, out in {**side, "traces": traces_out}.items() if not out.complete}
    if not unfinished:
        return output
    begun_with = traces_out.manifest.contents["config"]["batch_size"]
    # As many as before, unless told otherwise, or by another device's memory.
    rows = begun_with if batch_size is None and begun_with * SHARE <= room else room
    size = max(1, begun_with // per_question) * 8
    groups = [questions[i : i + size] for i in range(0, len(questions), size)]
    longest = [max(lengths[i : i + size]) for i in range(0, len(questions), size)]
    rooms = prompt_rooms(longest, decoding.max_new_tokens)
    key = jax.random.key(seed)

    look = DecodingProgress(progress, len(questions))

    for index, group in enumerate(groups):
        # Groups are fixed: a restart decodes the same questions together, since matrix products of another shape differ
        # in their last bits. The newest group may be torn, so it is decoded again and only what is missing is added, to
        # each file its own: one may have been asked for later than the others.
        following = groups[index + 1] if index + 1 < len(groups) else []
        begun = [
            any(_trace_id(q, 0, per_question if name == "traces" else 1) in out.done for q in following)
            for name, out in unfinished.items()
        ]
        if not all(begun):
            options: dict[str, Any] = {
                "batch_size": rows,
                "progress": look.within(index * size),
                "usage": look.usage,
            }
            if len(groups) > 1:
                options["pad_to"] = (size, rooms[index])
            if isinstance(config, SampleConfig):
                decoded = _sampled(policy, group, config, key, options)
            else:
                decoded = _searched(policy, group, config, strategy, key, extract, equal, options)
            traces, voted = _named(group, decoded, per_question, extract, equal)
            stamped = (
                dataclasses.replace(trace, policy=policy.hash[:16], seed=seed, strategy=strategy)
                for trace in traces
            )
            records = {
                "trees": decoded.trees,
                "answers": voted,
                "traces": [trace_to_record(trace, token_stats=token_stats) for trace in stamped],
            }
            for name, out in unfinished.items():
                out.append(records[name])
        look(min((index + 1) * size, len(questions)))
    for out in unfinished.values():
        out.finish(questions=len(questions), records=len(out.done))
    return output


def prompt_rooms(longest: Sequence[int], new_tokens: int) -> list[int]:
    """The prompt tokens that each group is decoded with: those of a group with longer prompts, if a row grows little by them.

    Every number is compiled anew, and each group has another longest prompt.

    Args:
      longest: tokens of each group's longest prompt.
      new_tokens: of the longest output.
    """
    rooms: dict[int, int] = {}
    room = 0
    for tokens in sorted(longest, reverse=True):
        if not room or room + new_tokens > (1 + _MOST_PADDING) * (tokens + new_tokens):
            room = tokens
        rooms[tokens] = room
    return [rooms[tokens] for tokens in longest]


def _trace_id(question: Question, index: int, per_question: int) -> str:
    return question.id if per_question == 1 else f"{question.id}/{index}"


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """What was decoded for a group of questions; lists over the questions."""

    paths: list[Sequence[Trace]]  # finished outputs
    left_open: list[list[Trace]]  # branches that an exploration left open
    tokens: list[int]  # decoded
    trees: list[dict[str, Any]]  # records; none of independent outputs
    vote: Vote  # how the paths of a question give one answer, and
    gamma: float  # its exponent


def _sampled(
    policy: Policy,
    questions: Sequence[Question],
    config: SampleConfig,
    key: jax.Array,
    options: Mapping[str, Any],
) -> _Decoded:
    """Independent outputs."""
    flat = generate(policy.model, policy.tokenizer, questions, config, key, **options)
    n = config.num_samples
    paths: list[Sequence[Trace]] = [flat[i : i + n] for i in range(0, len(flat), n)]
    tokens = [sum(len(trace.token_ids) for trace in group) for group in paths]
    return _Decoded(paths, [[] for _ in paths], tokens, [], "majority", 1.0)


def _searched(
    policy: Policy,
    questions: Sequence[Question],
    config: CatConfig,
    strategy: str,
    key: jax.Array,
    extract: Extract | None,
    equal: Equal | None,
    options: Mapping[str, Any],
) -> _Decoded:
    """The trees of a search, or of an exploration: the steps of what that left open are training data too."""
    explores = strategy == "explore"
    results = (explore if explores else cat_search)(
        policy.model,
        policy.tokenizer,
        questions,
        config,
        key,
        extract=extract or last_line,
        equivalent=equal or same_text,
        **options,
    )
    left_open: list[list[Trace]] = [[] for _ in results]
    if explores:
        spelled = policy.token_bytes
        left_open = [
            [t for t in tree_traces(r.tree, question, spelled) if t.finish_reason in ("pruned", "budget")]
            for question, r in zip(questions, results, strict=True)
        ]
    return _Decoded(
        paths=[r.paths for r in results],
        left_open=left_open,
        tokens=[r.tokens for r in results],
        trees=[search_to_record(r, config.vote, config.gamma) | {"id": r.question_id} for r in results],
        vote=config.vote,
        gamma=config.gamma,
    )


def _named(
    questions: Sequence[Question],
    decoded: _Decoded,
    per_question: int,
    extract: Extract | None,
    equal: Equal | None,
) -> tuple[list[Trace], list[dict[str, Any]]]:
    """The traces with their ids, the finished ones with their answers, and a record of each question's voted answer.

    Without `extract` no answer is read, and none is voted for.
    """
    same = equal or same_text
    traces: list[Trace] = []
    voted: list[dict[str, Any]] = []
    columns = (questions, decoded.paths, decoded.left_open, decoded.tokens)
    for question, paths, left_open, tokens in zip(*columns, strict=True):
        named = [
            dataclasses.replace(trace, id=_trace_id(question, i, per_question))
            for i, trace in enumerate([*paths, *left_open])
        ]
        if extract is None:  # then a search has read the last line
            named = [dataclasses.replace(trace, answer=None) for trace in named]
        else:
            finished = [with_answer(trace, extract, equal) for trace in named[: len(paths)]]
            named[: len(paths)] = finished
            answer, votes = vote(
                finished, decoded.vote, extract=extract, equivalent=same, gamma=decoded.gamma
            )
            right = None if question.gold is None else answer is not None and same(question.gold, answer)
            voted.append(
                {"id": question.id, "answer": answer, "correct": right, "tokens": tokens, "votes": votes}
            )
        traces += named
    return traces, voted
