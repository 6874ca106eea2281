"""The code in a model's output, and which of its fenced blocks is meant: what follows the code is often fenced too."""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
import warnings
from collections.abc import Callable
from typing import TypeVar

from caspo_jax.steps.marked import after_thought

Tree = TypeVar("Tree", bound=ast.AST)
FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)  # tag, text
STDIN = "<stdin>"  # stands among the names of a block that reads standard input
_PYTHON = re.compile(r"\{?\.?py(?:thon)?[\d.]*\b", re.IGNORECASE)
_READS = re.compile(r"\b(?:input\s*\(|stdin\b|fileinput\b|open\(0|read\(0)")
_CODE_LINE = re.compile(  # how a statement may begin
    r"import |from \w|def |async |class |@|if |for |while |try:|with |assert |raise |del |#|\"\"\"|'''|"
    r"[A-Za-z_][\w.]*+(?:\(|\[|[,\w.\s]*+[-+*/%|&^]?=(?!=))"
)
_GOES_ON = re.compile(r"(?:else|elif|except|finally)\b|[)\]}]")
_MOST_LINES = 40  # at the margin, of one statement
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclasses.dataclass(frozen=True)
class _Block:
    """A fenced block."""

    tag: str
    code: str
    parses: bool
    names: frozenset[str]  # of all functions, methods and classes in it, and STDIN


def code_in(output: str) -> str | None:
    """The code of an output: of its fenced blocks, else the indented lines it begins with, else what defines something
    among its prose, else all of it. Drafts in a thought that has ended are no part of it.

    Blocks that define different things are put into fences: `block_for` chooses, once the question is known.
    """
    output = after_thought(output)
    blocks = _candidates(output)
    if blocks:
        return _joined(blocks)
    lines = output.rstrip().splitlines()
    first = next((line for line in lines if line.strip()), "")
    if first[:1] in (" ", "\t"):  # the rest of a function; what follows it is something new
        body: list[str] = []
        for line in lines:
            if line.strip() and line[0] not in " \t":
                break
            body.append(line)
        return "\n".join(body).rstrip()
    tree = parsed(output)
    if tree is None or any(map(_is_remark, tree.body)):
        blocks = _asked_for([_block("", code) for code in _runs(lines)])
        if any(block.names for block in blocks):
            return _joined(blocks)
    return output.strip() or None


def block_for(answer: str, wanted: str) -> str:
    """Of what `code_in` found, the last block that defines `wanted` (or reads STDIN), else the last block."""
    blocks = _candidates(answer)
    fitting = [block for block in blocks if wanted in block.names] or blocks
    return fitting[-1].code if fitting else answer


def parsed(code: str) -> ast.Module | None:
    """Its syntax tree; None for what is not Python."""
    return _tree(code, ast.parse)


def expression(source: str) -> ast.expr | None:
    """The syntax tree of a lone expression; None for anything else."""
    return _tree(source.strip(), lambda text: ast.parse(text, mode="eval").body)


def _tree(source: str, parse: Callable[[str], Tree]) -> Tree | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's "\d" is no news to the user
            return parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def same_code(one: str, other: str) -> bool:
    """Equal but for white space at the ends of lines."""
    return [line.rstrip() for line in one.splitlines()] == [line.rstrip() for line in other.splitlines()]


def _candidates(output: str) -> list[_Block]:
    """Blocks of which any may be meant: none whose names a later one has too. If none has a name, the last at most."""
    blocks = [_block(tag.strip(), code) for tag, code in FENCE.findall(output) if code.strip()]
    blocks = [b for b in blocks if not b.tag or _PYTHON.match(b.tag)] or blocks
    return _asked_for([b for b in blocks if b.parses] or blocks)


def _asked_for(blocks: list[_Block]) -> list[_Block]:
    named = [b for b in blocks if b.names]
    if named:
        return [b for i, b in enumerate(named) if not any(b.names <= later.names for later in named[i + 1 :])]
    return ([b for b in blocks if b.tag] or blocks)[-1:]  # untagged ones tend to be what a program prints


def _block(tag: str, text: str) -> _Block:
    code = textwrap.dedent(text).rstrip()  # a fence in a list is indented with what it holds
    tree = parsed(code)
    if tree is None:
        return _Block(tag, code, False, frozenset())
    names = {node.name for node in ast.walk(tree) if isinstance(node, _DEFINITIONS)}
    return _Block(tag, code, True, frozenset(names | {STDIN} if _READS.search(code) else names))


def _joined(blocks: list[_Block]) -> str:
    """One block as it is, several in fences."""
    fenced = (f"```python\n{block.code}\n```" for block in blocks)
    return blocks[0].code if len(blocks) == 1 else "\n\n".join(fenced)


def _is_remark(statement: ast.stmt) -> bool:
    """`Explanation`, `Step-by-step`, `Complexity: linear`: Python that does nothing."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Name | ast.Attribute | ast.Tuple | ast.BinOp)
    return isinstance(statement, ast.AnnAssign) and statement.value is None


def _runs(lines: list[str]) -> list[str]:
    """Runs of statements that begin at the margin, each as code may begin; between them is prose."""
    starts = [i for i, line in enumerate(lines) if line[:1].strip() and not _GOES_ON.match(line)]
    starts.append(len(lines))
    found: list[list[str]] = [[]]
    at = 0
    while at < len(starts) - 1:
        whole = None
        if _CODE_LINE.match(lines[starts[at]]):
            ends = range(at + 1, min(at + _MOST_LINES, len(starts) - 1) + 1)
            texts = (("\n".join(lines[starts[at] : starts[end]]), end) for end in ends)
            whole = next(((text, end) for text, end in texts if parsed(text)), None)
        if whole is None:
            found.append([])
            at += 1
        else:
            found[-1].append(whole[0])
            at = whole[1]
    return ["\n".join(run) for run in found if run]
