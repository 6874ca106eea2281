"""Ordinary and LaTeX text to the tokens of stated equations."""

from __future__ import annotations

import dataclasses
import re

from caspo_jax.steps.numerals import DEGREES

_FUNCTIONS = frozenset(
    """
    abs arccos arcsin arctan base bmod ceil choose cos cot csc det exp floor gcd lcm ln log max min mod modulo pmod
    sec sin sqrt tan
    """.split()  # noqa: SIM905
)
_UNITS = frozenset(
    """
    am cm ft gb hr hrs in kb kg km kph lb lbs mb mg min mins ml mm mph nd oz pm pts rd sec secs st th yd yds
    """.split()  # noqa: SIM905
)
SCALES = {
    name + plural: factor
    for name, factor in (
        ("dozen", 12),
        ("hundred", 100),
        ("thousand", 1000),
        ("million", 10**6),
        ("billion", 10**9),
        ("trillion", 10**12),
    )
    for plural in ("", "s")
}
_STYLES = "mathrm|textbf|textit|text|mathbf|mathit|boxed|fbox|operatorname|mbox|displaystyle"

_REPLACED: tuple[tuple[str, str], ...] = (
    # A chain over several lines; blanks are read from their first on, not once more from each of many newlines.
    (r"\\\\\s*+(?:&\s*+)?=|(?<!\s)[^\S\n]*+\n\s*+(?:&\s*+)?=(?![=>])", " = "),
    (r"\\\\|\\(?:begin|end)\s*\{[a-zA-Z*]+\}", " \n "),
    (r"\\(?:left|right|big|Big|bigg|Bigg)(?![a-zA-Z])\.?", " "),
    (r"\{,\}|,\\!", ","),
    (r"\\[,;:!> ]|\\q?quad(?![a-zA-Z])|~|&", " "),
    (r"(?<=\d)\s*\.\s*\\(?:overline|bar|dot)(?![a-zA-Z])", r" \\overline "),
    (r"\\[$€£]", " "),
    (r"\\%", "%"),
    (r"\\[()\[\]]|\$+|[€£¥]", " "),
    (rf"\\(?:{_STYLES})(?![a-zA-Z])\*?", " "),
    (r"\\(?:times|cdot|ast)(?![a-zA-Z])", " * "),
    (r"\\div(?![a-zA-Z])", " / "),
    (r"\\[dtc]?frac(?![a-zA-Z])", r" \\frac "),
    (DEGREES, " degrees "),
    (r"(?<=[\d)\]}])\s*\*\*\s*(?=[\d(\-])", " ^ "),
    (r"\*\*", " "),
    (r"(?m)^[^\S\n]*+(?:[*•\-–]|\d+[.)])\s+", " "),  # list markers
    (r"[−–]", "-"),
    (r"[×·∙⋅]", "*"),
    (r"÷", "/"),
    (r"²", "^2"),
    (r"³", "^3"),
    (r"(?<=[\d)\]%}])\s*[xX]\s*(?=[\d(\[.])(?!\d*\s*[xX]\d*[a-zA-Z])", " * "),
    (r"(?<=\d)\s*[Pp]ercent(?![a-zA-Z])", "%"),
    (r"(%|\d\s*/\s*\d+)\s+of\s+(?=\d|\()", r"\1 * "),
)
_REPLACED_COMPILED = tuple((re.compile(pattern), by) for pattern, by in _REPLACED)

_TOKEN = re.compile(
    r"""
      (?P<num>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d.])\.\d+)
    | (?P<frac>\\frac(?![a-zA-Z]))
    | (?P<sqrt>\\sqrt(?![a-zA-Z])(?!\s*\[)|√)
    | (?P<neq>!=|<=|>=|=>|->|:=|=/=|\\(?:neq?|leq?|geq?|lt|gt|approx|implies|to|Rightarrow|rightarrow|therefore)(?![a-zA-Z])|[<>≈≠≤≥→⇒∴])
    | (?P<eq>==?)
    | (?P<command>\\[a-zA-Z]+)
    | (?P<word>[^\W\d_]+(?:['’\-][^\W\d_]+)*)
    | (?P<op>[+\-*/^])
    | (?P<open>[(\[{])
    | (?P<close>[)\]}])
    | (?P<percent>%)
    | (?P<bang>!)
    | (?P<stop>[.,;:?\n"“”])
    | (?P<space>\s+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_KINDS = {
    "eq": "=",
    "open": "(",
    "close": ")",
    "percent": "%",
    "bang": "!",
    "neq": "stop",
    "command": "symbol",
}


@dataclasses.dataclass(frozen=True)
class Token:
    """One token; kinds: num op = ( ) % ! frac sqrt, word (prose or unit), scale (`million`), symbol (unknown), unit, stop."""

    kind: str
    text: str
    spaced: bool = True  # white space before it


def lex(text: str) -> list[list[Token]]:
    r"""The tokens of a text, and apart from them those of each GSM8K annotation `<<...>>`."""
    annotations = re.findall(r"<<([^<>]*)>>", text)
    plain = re.sub(r"<<[^<>]*>>", "", text)
    return [_tokens(part) for part in (plain, *annotations)]


def _tokens(text: str) -> list[Token]:
    for pattern, by in _REPLACED_COMPILED:
        text = pattern.sub(by, text)
    raw: list[Token] = []
    spaced = True
    for match in _TOKEN.finditer(text):
        name = match.lastgroup or "other"
        if name == "space" and "\n" not in match.group():
            spaced = True
            continue
        kind = "stop" if name == "space" else _KINDS.get(name, name)
        if name == "other":
            kind = "symbol"
        raw.append(Token(kind, match.group(), spaced))
        spaced = name == "space"
    return [_classified(raw, i) for i in range(len(raw))]


def _classified(tokens: list[Token], i: int) -> Token:
    """A word is a symbol if it is one letter, a function, or attached to a number or a bracket."""
    token = tokens[i]
    before = tokens[i - 1] if i else None
    after = tokens[i + 1] if i + 1 < len(tokens) else None
    if token.kind == "stop" and token.text == ":" and before and after and before.kind == after.kind == "num":
        return dataclasses.replace(token, kind="symbol") if not (token.spaced or after.spaced) else token
    if token.kind == "word":
        attached_after = after is not None and not after.spaced and after.kind in ("num", "(", "^", "symbol")
        attached_before = before is not None and not token.spaced and before.kind in ("num", ")", "symbol")
        if before is not None and before.kind == "num" and token.text.lower() in SCALES:
            return dataclasses.replace(token, kind="scale")
        if token.text == "degrees":
            return dataclasses.replace(token, kind="unit")
        article = token.text in ("a", "A", "I") and after is not None and after.kind == "word"
        article = article and (before is None or before.kind in ("word", "stop"))
        single = len(token.text) == 1 and not article
        if single or token.text.lower() in _FUNCTIONS or attached_after:
            return dataclasses.replace(token, kind="symbol")
        unit = len(token.text) > 3 or token.text.lower() in _UNITS  # `5cm`, not `2xy`
        if attached_before and before is not None and (before.kind != "num" or not unit):
            return dataclasses.replace(token, kind="symbol")
    return token
