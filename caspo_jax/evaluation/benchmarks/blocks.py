"""The code in a model's output, and which of its fenced blocks is meant: what follows the code is often fenced too."""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
import warnings

FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)  # tag, text
STDIN = "<stdin>"  # stands among the names of a block that reads standard input
_PYTHON = re.compile(r"\{?\.?py(?:thon)?[\d.]*\b", re.IGNORECASE)
_READS = re.compile(r"\b(?:input\s*\(|stdin\b|fileinput\b|open\(0|read\(0)")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclasses.dataclass(frozen=True)
class _Block:
    """A fenced block."""

    tag: str
    code: str
    parses: bool
    names: frozenset[str]  # of all functions, methods and classes in it, and STDIN


def code_in(output: str) -> str | None:
    """The code of an output: of its fenced blocks, else the indented lines it begins with, else all of it.

    Blocks that define different things keep their fences: `block_for` chooses, once the question is known.
    """
    blocks = _candidates(output)
    if blocks:
        fenced = (f"```python\n{block.code}\n```" for block in blocks)
        return blocks[0].code if len(blocks) == 1 else "\n\n".join(fenced)
    lines = output.rstrip().splitlines()
    first = next((line for line in lines if line.strip()), "")
    if first[:1] in (" ", "\t"):  # the rest of a function; what follows it is something new
        body: list[str] = []
        for line in lines:
            if line.strip() and line[0] not in " \t":
                break
            body.append(line)
        return "\n".join(body).rstrip()
    return output.strip() or None


def block_for(answer: str, wanted: str) -> str:
    """Of what `code_in` found, the last block that defines `wanted` (or reads STDIN), else the last block."""
    blocks = _candidates(answer)
    fitting = [block for block in blocks if wanted in block.names] or blocks
    return fitting[-1].code if fitting else answer


def parsed(code: str) -> ast.Module | None:
    """Its syntax tree; None for what is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's "\d" is no news to the user
            return ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def same_code(one: str, other: str) -> bool:
    """Equal but for white space at the ends of lines."""
    return [line.rstrip() for line in one.splitlines()] == [line.rstrip() for line in other.splitlines()]


def _candidates(output: str) -> list[_Block]:
    """Blocks of which any may be meant: none whose names a later one has too. If none has a name, the last at most."""
    blocks = [_block(tag.strip(), code) for tag, code in FENCE.findall(output) if code.strip()]
    blocks = [b for b in blocks if not b.tag or _PYTHON.match(b.tag)] or blocks
    blocks = [b for b in blocks if b.parses] or blocks
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
