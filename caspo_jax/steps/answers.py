r"""Answers: read out of a text, and compared with the gold."""

from __future__ import annotations

import enum
import itertools
import re
from fractions import Fraction

from caspo_jax.errors import UserError


class AnswerKind(enum.StrEnum):
    """What an answer is, and so how it is read and compared."""

    MATH = "math"  # a mathematical object, compared by math-verify
    INTEGER = "integer"
    LETTER = "letter"  # of a choice, A to J
    YES_NO = "yes_no"  # true/false counts as yes/no
    STRING = "string"  # compared without case, outer punctuation and runs of white space


_MARKER = re.compile(  # nothing is given back: a run of blanks or hashes is read once
    r"(?:^[ \t]*+(?:#++|\*\*)[ \t]*+(?:final[ \t]++)?answer[ \t]*+(?:\*\*[ \t]*+)?\n|#{4,}+"
    r"|(?:final\s++)?answer(?:\s+is)?\s*+(?:\*\*\s*+)?:|(?:final\s++)?answer\s++is)\s*+(?:\*\*\s*+)?"
    r"((?s:\\\[.*?\\\]|\$\$.*?\$\$)?[^\n]*)",  # a display block may run over several lines
    re.IGNORECASE | re.MULTILINE,
)
_STYLED = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_LEADING_LETTER = re.compile(r"\W*(?:(?:option|choice)\s+\W*)?([A-J])[\\*$\s]*[.):](?!\w)", re.IGNORECASE)
_ARGUED_LETTER = re.compile(  # `C, not A`: what follows is about the letter, and is no second one
    r"\W*(?:[Oo]ption\s+|[Cc]hoice\s+)?\W*([A-J])[\\*$\s)]*[,;]?\s+(?:and\s+)?(?:not|because|since|as|rather|which)\b"
)
_LEADING_YES_NO = re.compile(r"\W*(yes|no|true|false)\b(?!\s*(?:or\b|/))", re.IGNORECASE)
_YES = frozenset({"yes", "true"})
_IN_BASE = re.compile(r"\(?([-+]?)([\da-f]+(?:\.[\da-f]+)?)\)?_\{?\(?(\d{1,3})\)?\}?\.?", re.IGNORECASE)
_WITH_BASE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\)?_\{?\(?(\d{1,3})(?!\d)")
_IN_FORMULA = re.compile(
    r"(?:/|\^|\\times|\\cdot|\\sqrt|\\[dt]?frac(?:\s*\{[^{}]*\}|\d)?)\s*\{?\s*$"
)  # what is before
_MOST_DIGITS = (
    1000  # Python refuses to read integers of more than 4,300: a model may repeat one digit for ever
)
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d{1,3})(?![\w.])")  # `4.5e33`
_POWER_OF_TEN = re.compile(
    r"([-+]?(?:\d+(?:\.\d*)?|\.\d+))(?:\\times|\\cdot|[×·*])10\^(?:(\d)|\{([-+]?\d{1,3})\})"
)
_CLOSE = Fraction(5, 10_000)  # relative difference of two decimals: a rounding to four significant digits


_BOX = re.compile(r"\\(?:f?boxed|fbox|framebox)\s*\{")
_SEPARATOR = r",|;|\band\b|\bor\b"
_BRACE = re.compile(r"(?<!\\)[{}]")
_BETWEEN_BOXES = (
    re.compile(  # on one line anything that is no word or number; over a line's end a separator too
        rf"(?=[^\n]*$|.*(?:{_SEPARATOR}))"
        rf"(?:{_SEPARATOR}|[ \t$&]|\n(?!\n)|\\[()]|\\q?quad|\\[,;!]|\\text\s*\{{|\}})*",
        re.DOTALL,
    )
)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` (`\fbox`, `\framebox`) that is not empty and whose braces balance, or None.

    Boxes that follow each other with nothing but a comma or an "and" between them are one answer: `\boxed{2} and
    \boxed{3}` gives `2, 3`.
    """
    found: list[str] = []
    start_of_last = len(text)
    for start, end, content in reversed(_boxes(text)):
        if found and not _BETWEEN_BOXES.fullmatch(text[end:start_of_last]):
            break
        if not content:
            continue  # the instruction said once more
        if content not in found:
            found.insert(0, content)
        start_of_last = start
    if found:
        return ", ".join(found)
    bare = re.findall(r"\\boxed\s+([^\s{}$]+)", text)
    return bare[-1] if bare else None


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every box whose braces balance; one inside another is part of its content."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            closing[opened.pop()] = brace.start()
    found: list[tuple[int, list[tuple[int, int]]]] = []  # end, and what is no content
    for match in _BOX.finditer(text):
        stop = closing.get(match.end() - 1)
        if stop is not None:
            if not found or match.start() >= found[-1][0]:
                found.append((stop + 1, []))
            found[-1][1].extend([match.span(), (stop, stop + 1)])
    return [(cuts[0][0], end, _between(text, sorted(cuts)).strip()) for end, cuts in found]


def _between(text: str, cuts: list[tuple[int, int]]) -> str:
    return "".join(text[a:b] for (_, a), (b, _) in itertools.pairwise(cuts))


def marked_answer(text: str) -> str | None:
    """What follows the last `Answer:`, `the answer is`, `####` or heading that says so, a line or a display block, or None."""
    found = [cleaned for match in _MARKER.finditer(text) if (cleaned := _trim(_innermost(match.group(1))))]
    return found[-1] if found else None


def _innermost(text: str) -> str:
    """After the last marker of a line, without a closing phrase: `The final answer is 5. I hope it is correct.`"""
    while inner := _MARKER.search(text):
        text = inner.group(1)
    return text.split("I hope it is correct")[0]


def _trim(text: str) -> str:
    text = re.sub(r"^\*+|\*+\.?$", "", text.strip()).strip()
    text = re.sub(r"(?s)^\\\((.*)\\\)[.\s]*$|^\\\[(.*)\\\][.\s]*$", lambda m: m.group(1) or m.group(2), text)
    text = re.sub(r"^\$+([^$]*)\$+[.\s]*$", r"\1", text).strip()
    if text in (r"\(", r"\[", r"\boxed{}"):
        return ""  # cut off after its opening, or nothing boxed
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def extract_answer(text: str, kind: AnswerKind | str = AnswerKind.MATH) -> str | None:
    r"""The final answer that a text gives.

    The last balanced `\boxed{}`, else what follows the last `Answer: X` or `#### X`; of a thinking model after
    `</think>`, where that gives one. Letters, yes/no and
    integers are then read out of that, or, where nothing marks an answer, out of the last line.

    Returns:
        The answer (a letter in upper case, `yes`/`no`, an integer's digits), or None.

    >>> extract_answer(r"So it is \boxed{\frac{1}{2}}."), extract_answer("The answer is (b).", "letter")
    ('\\frac{1}{2}', 'B')
    """
    kind = answer_kind(kind)
    thought, _, said = text.rpartition("</think>")
    marked = _marked(said) or _marked(thought)
    if kind in (AnswerKind.MATH, AnswerKind.STRING):
        return marked or None
    lines = text.strip().splitlines()
    source = marked if marked else (lines[-1] if lines else "")
    if kind is AnswerKind.INTEGER:
        return _integer(source)
    return (_letter if kind is AnswerKind.LETTER else _yes_no)(source, marked=bool(marked))


def _marked(text: str) -> str | None:
    boxed = last_boxed(text)
    return marked_answer(text) if boxed is None else boxed


def answer_kind(kind: AnswerKind | str) -> AnswerKind:
    """The kind by its name. Raises UserError for another name."""
    try:
        return AnswerKind(kind)
    except ValueError:
        raise UserError(f"answer kind {kind!r} is none of {', '.join(AnswerKind)}") from None


def _integer(text: str) -> str | None:
    """The whole text as a number, else the last number in it; None where that is no integer or part of a formula."""
    text = re.sub(r"(?<=\d)(?:\{,\}|,?\\[,!])\s*(?=\d{3}(?!\d))", ",", text.replace("\\$", ""))
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|(?<=[A-Za-z}])\s*\^\s*\{?\d\}?", "", text)  # degrees, cm^2
    value = _fraction(text)
    if value is None:
        found = list(re.finditer(r"(?<![\w.])[-−]?\d+(?:,\d+)*(?:\.\d+)?(?!\w|[.,]\d)", text))
        if not found or _IN_FORMULA.search(text[: found[-1].start()]) or text[found[-1].end() :][:1] == "^":
            return None
        value = _fraction(found[-1].group())
    return str(value) if value is not None and value.denominator == 1 else None


def _letter(text: str, marked: bool = True) -> str | None:
    """The letter that opens what is marked as the answer (`E. Vitamin C`), else the last one that stands alone."""
    text = _STYLED.sub(r"\1", text)
    leading = re.fullmatch(r"\W*([A-Ja-j])\W*", text)
    if leading is None and marked:
        leading = _LEADING_LETTER.match(text) or _ARGUED_LETTER.match(text)
    if leading:
        return leading.group(1).upper()
    found = re.findall(r"\(([A-J])\)", text) or re.findall(r"(?<![\w'’])([A-J])(?![\w'’])(?!\s+[a-z])", text)
    if found:
        return found[-1]
    first = re.match(r"\W*(?!I\s+(?!is\b)[a-z])([A-J])\b", text)  # not `I think so`
    return first.group(1) if first else None


def _yes_no(text: str, marked: bool = True) -> str | None:
    """The word that opens what is marked as the answer (`No, that is not true`), else the last one."""
    text = _STYLED.sub(r"\1", text)
    leading = _LEADING_YES_NO.match(text) if marked else None
    if leading:
        return "yes" if leading.group(1).lower() in _YES else "no"
    found = re.findall(r"(\bnot\s+|n['’]t\s+)?\b(yes|no|true|false)\b", text, re.IGNORECASE)
    return None if not found else ("yes" if (found[-1][1].lower() in _YES) != bool(found[-1][0]) else "no")


def equivalent(gold: str, answer: str, kind: AnswerKind | str = AnswerKind.MATH) -> bool:
    r"""Whether an answer is the gold one; the order matters for `math` (math-verify's `verify(gold, answer)`).

    Equal strings and equal plain numbers are decided here; other mathematics by math-verify in a process of its
    own, so that its time limit holds in any thread. What meets the limit counts as different.

    >>> equivalent("0.5", r"\frac{1}{2}"), equivalent("1,000", "1000", "integer"), equivalent("2", "3")
    (True, True, False)
    """
    kind = answer_kind(kind)
    if kind is AnswerKind.LETTER:
        return _letter(gold) is not None and _letter(gold) == _letter(answer)
    if kind is AnswerKind.YES_NO:
        return _yes_no(gold) is not None and _yes_no(gold) == _yes_no(answer)
    if _plain(gold) == _plain(answer):
        return True
    if kind is AnswerKind.STRING:
        return False
    gold, answer = _without_unit(gold), _without_unit(answer)
    a, b = _fraction(gold), _fraction(answer)
    if a is not None and a == b:
        return True
    if kind is AnswerKind.INTEGER or _differ(gold, a, answer, b):
        return False
    in_base = _in_base(gold), _in_base(answer)
    if None not in in_base:
        return in_base[0] == in_base[1]  # math-verify ignores the base
    one, other = _numbers_with_base(gold), _numbers_with_base(answer)
    if not (one <= other or other <= one):
        return False
    from caspo_jax.steps.grading import math_equivalent

    return math_equivalent(*(_SCIENTIFIC.sub(r"\1 \\times 10^{\2}", side) for side in (gold, answer)))


def _plain(text: str) -> str:
    text = re.sub(r"^(?:\$|\.(?!\d))+|[$.]+$", "", text.strip())  # a point before a digit is a decimal's
    return " ".join(text.split()).casefold()


def _without_unit(text: str) -> str:
    r"""Without dollar signs and without a unit in words after a value: `\$36`, `15\mbox{ cm}^2`, `18 dollars`."""
    text = re.sub(r"\\\$|,?\\!\s*", "", text).strip()
    whole = re.fullmatch(r"\\\(((?:(?!\\[()]).)*)\\\)|\\\[((?:(?!\\[\[\]]).)*)\\\]", text, re.DOTALL)
    text = (whole[1] or whole[2] or "").strip() if whole else text
    if text.startswith("$") and text.endswith("$") and "$" not in text[1:-1]:
        text = text[1:-1].strip()
    in_words = r"\\(?:text|mbox|mathrm)\s*\{\s*[A-Za-z][A-Za-z .]*\}\s*(?:\^\s*\{?\d\}?)?"
    return re.sub(rf"(?<=[\d)}}])\s*(?:{in_words}|(?i:dollar|cent|euro)s?)\.?$", "", text)


def _fraction(text: str) -> Fraction | None:
    r"""A plain number: sign, digits, thousands separators, decimals, one slash, `1 1/2` and `1\frac{1}{2}`, `4.5e33` and
    `4.5 \times 10^{33}`; else None.

    A space between digits separates thousands or a whole number from its fraction; `32, 349` is a list, `2 3` nothing.
    """
    if len(text) > _MOST_DIGITS:
        return None
    text = text.strip().rstrip(".").replace("{,}", ",").replace("−", "-").replace("$", "")
    text = re.sub(r"\\[,;: ]|~", " ", text)
    text = re.sub(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2 ", text)
    text = re.sub(r"(?<![\d,]) | (?!\d)", "", " ".join(text.split()))
    text = re.sub(r"^\\(?:text|mathrm|textbf|mathbf|boldsymbol)\{\(?([^{}()]*)\)?\}$", r"\1", text)
    if re.fullmatch(r"[-+]?[1-9]\d{0,2}([, ])\d{3}(\1\d{3})*(\.\d+)?", text):
        text = re.sub("[, ]", "", text)
    text = _POWER_OF_TEN.sub(lambda m: f"{m[1]}e{m[2] or m[3]}", text)
    if re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,3})?", text):
        return Fraction(text)
    parts = re.fullmatch(r"([-+]?)(?:(\d+) )?(\d+)/(\d+)", text)
    if parts is None or int(parts[4]) == 0:
        return None
    value = int(parts[2] or 0) + Fraction(int(parts[3]), int(parts[4]))
    return -value if parts[1] == "-" else value


def _differ(gold: str, a: Fraction | None, answer: str, b: Fraction | None) -> bool:
    """Whether two plain numbers are told apart here; math-verify compares six places of the others."""
    if a is None or b is None:
        return False
    text = gold + answer
    if "." not in text:
        return True
    # Six places say nothing about small decimals.
    return "/" not in text and "frac" not in text and abs(a - b) > _CLOSE * max(abs(a), abs(b))


def _in_base(text: str) -> tuple[bool, str, int] | None:
    r"""Sign, digits and base of `52_8` or `52_{8}`; None for anything else."""
    found = _IN_BASE.fullmatch(re.sub(r"\\[,!]|\{,\}|[\s$]", "", text).replace("−", "-"))
    if found is None:
        return None
    digits = found[2].lower().lstrip("0")
    return found[1] == "-", digits.rstrip("0").rstrip(".") if "." in digits else digits, int(found[3])


def _numbers_with_base(text: str) -> set[tuple[bool, str, int] | None]:
    """The numbers in a text that say their base, as `_in_base` reads each."""
    return {_in_base(match.expand(r"\1_\2")) for match in _WITH_BASE.finditer(re.sub(r"[\s$]", "", text))}
