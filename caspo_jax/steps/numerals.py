"""Numbers as answers write them, read exactly: units taken off, thousands, fractions, powers of ten, other bases."""

from __future__ import annotations

import re
from fractions import Fraction

DEGREES = r"\^\s*+(?:\{\s*+)?\\(?:circ|degree)\s*\}?|°"  # the sign, as a pattern
_MOST_DIGITS = 1000  # Python reads no integer of more than 4,300, and a model may repeat one digit for ever
_POWER_OF_TEN = re.compile(
    r"([-+]?(?:\d+(?:\.\d*)?|\.\d+))(?:\\times|\\cdot|[×·*])10\^(?:(\d)|\{([-+]?\d{1,3})\})"
)
_IN_BASE = re.compile(r"\(?([-+]?)([\da-f]+(?:\.[\da-f]+)?)\)?_\{?\(?(\d{1,3})\)?\}?\.?", re.IGNORECASE)
_WITH_BASE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\)?_\{?\(?(\d{1,3})(?!\d)")
_CLOSE = Fraction(5, 10_000)  # relative difference of two decimals: a rounding to four significant digits

InBase = tuple[bool, str, int]  # is it negative, its digits, its base


def without_unit(text: str) -> str:
    r"""Without dollar signs and without a unit in words after a value: `\$36`, `15\mbox{ cm}^2`, `18 dollars`."""
    text = re.sub(r"\\\$|,?\\!\s*", "", text).strip()
    whole = re.fullmatch(r"\\\(((?:(?!\\[()]).)*)\\\)|\\\[((?:(?!\\[\[\]]).)*)\\\]", text, re.DOTALL)
    text = (whole[1] or whole[2] or "").strip() if whole else text
    if text.startswith("$") and text.endswith("$") and "$" not in text[1:-1]:
        text = text[1:-1].strip()
    in_words = r"\\(?:text|mbox|mathrm)\s*\{\s*[A-Za-z][A-Za-z .]*\}\s*(?:\^\s*\{?\d\}?)?"
    return re.sub(rf"(?<=[\d)}}])\s*(?:{in_words}|(?i:dollar|cent|euro)s?)\.?$", "", text)


def plain_number(text: str) -> Fraction | None:
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


def surely_differ(gold: str, a: Fraction | None, answer: str, b: Fraction | None) -> bool:
    """Whether two texts that `plain_number` reads as unequal a and b differ, so that math-verify need not be asked.

    It compares six places, which is right for a decimal that rounds a fraction, and wrong for small decimals.
    """
    if a is None or b is None:
        return False
    text = gold + answer
    if "." not in text:
        return True
    return "/" not in text and "frac" not in text and abs(a - b) > _CLOSE * max(abs(a), abs(b))


def in_base(text: str) -> InBase | None:
    r"""Sign, digits and base of `52_8` or `52_{8}`; None for anything else."""
    found = _IN_BASE.fullmatch(re.sub(r"\\[,!]|\{,\}|[\s$]", "", text).replace("−", "-"))
    if found is None:
        return None
    digits = found[2].lower().lstrip("0")
    return found[1] == "-", digits.rstrip("0").rstrip(".") if "." in digits else digits, int(found[3])


def numbers_with_base(text: str) -> set[InBase | None]:
    """The numbers in a text that say their base, as `in_base` reads each."""
    return {in_base(match.expand(r"\1_\2")) for match in _WITH_BASE.finditer(re.sub(r"[\s$]", "", text))}
