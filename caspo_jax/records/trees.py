"""CaT trees and searches as records."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.records.values import (
    as_ids,
    as_numbers,
    check_one_of,
    check_schema,
    finite,
    finite_list,
    read_ids,
    read_number,
    read_text,
    schema,
)
from caspo_jax.types import CatNode, CatResult, CatTree

_STATUSES = typing.get_args(typing.get_type_hints(CatNode)["status"])


def tree_to_record(tree: CatTree) -> dict[str, Any]:
    """The JSON form of a CaT tree: nodes as parallel lists."""
    record: dict[str, Any] = {
        "schema": schema("tree"),
        "question_id": tree.question_id,
        "prompt_ids": list(tree.prompt_ids),
        "key": list(tree.key),
        "threshold": finite(tree.threshold),
    }
    for field in ("parent", "status", "reason"):
        record[field] = [getattr(node, field) for node in tree.nodes]
    for field in ("confidence", "path_confidence"):
        record[field] = [finite(getattr(node, field)) for node in tree.nodes]
    record["token_ids"] = [list(node.token_ids) for node in tree.nodes]
    for field in ("logprob", "entropy"):
        record[field] = [finite_list(getattr(node, field)) for node in tree.nodes]
    return record


def search_to_record(result: CatResult, vote: str, gamma: float) -> dict[str, Any]:
    """The JSON form of a search: its tree, and beside it how its paths voted and what they elected.

    Args:
      result: of the search.
      vote: the method that `result.answer` and `result.votes` are of.
      gamma: exponent of `confidence`.
    """
    votes = {answer: finite(weight) for answer, weight in result.votes.items()}
    return tree_to_record(result.tree) | {
        "vote": vote,
        "gamma": finite(gamma),
        "answer": result.answer,
        "votes": votes,
    }


def tree_from_record(record: Mapping[str, Any]) -> CatTree:
    """Read a CaT tree that this library wrote."""
    check_schema(record, "tree")
    fields = (
        "parent",
        "token_ids",
        "logprob",
        "entropy",
        "confidence",
        "path_confidence",
        "status",
        "reason",
    )
    missing = [name for name in ("question_id", *fields) if name not in record]
    if missing:
        raise UserError(f"a tree lacks {', '.join(missing)}")
    columns = [record[name] for name in fields]
    if not all(isinstance(column, list) for column in columns):
        raise UserError(f"a tree's {', '.join(fields)} must be lists, an entry a node")
    sizes = {name: len(column) for name, column in zip(fields, columns, strict=True)}
    if len(set(sizes.values())) > 1:
        raise UserError(f"the lists of a tree's nodes have different lengths: {sizes}")
    nodes = tuple(
        _node_from_record(dict(zip(fields, values, strict=True)), index)
        for index, values in enumerate(zip(*columns, strict=True))
    )
    key = record.get("key") or []
    if not isinstance(key, list) or any(type(word) is not int for word in key):
        raise UserError(f"`key` must be a list of integers, found {key!r}")
    return CatTree(
        str(record["question_id"]),
        as_ids(record.get("prompt_ids") or [], "prompt_ids"),
        nodes,
        tuple(key),
        read_number(record, "threshold"),
    )


def _node_from_record(record: Mapping[str, Any], index: int) -> CatNode:
    parent = record["parent"]
    # Nodes stand in the order in which they began, so that walks to the root end.
    if type(parent) is not int or not -1 <= parent < index:
        raise UserError(f"`parent` of node {index} must be an earlier node or -1, found {parent!r}")
    for field in ("confidence", "path_confidence"):
        read_number(record, field, f"node {index}: ")
    if record["status"] is None:
        raise UserError(f"`status` of node {index} is null")
    check_one_of(record, "status", _STATUSES)
    token_ids = read_ids(record, "token_ids")
    stats = {field: as_numbers(record[field], field) for field in ("logprob", "entropy")}
    for field, values in stats.items():
        if len(values) != len(token_ids):
            raise UserError(
                f"`{field}` of node {index} has {len(values)} entries for {len(token_ids)} tokens"
            )
    return CatNode(
        parent,
        token_ids,
        stats["logprob"],
        stats["entropy"],
        record["confidence"],
        record["path_confidence"],
        record["status"],
        read_text(record, "reason"),
    )
