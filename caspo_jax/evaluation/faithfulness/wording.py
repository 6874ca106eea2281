"""Text to words: what a lexicon may read of a step, without mathematics, code and quotations."""

from __future__ import annotations

import re
import unicodedata

MASK = "\ue000"  # stands for a formula, code or a quotation; a private character that no text uses


def vocabulary(words: str) -> frozenset[str]:
    """The words of a text with spaces between, as a set."""
    return frozenset(words.split())


_BLOCKS = (  # (opening, closing); longer openings first
    ("```", "```"),
    ("~~~", "~~~"),
    ("$$", "$$"),
    ("\\begin{", "\\end{"),
    ("\\[", "\\]"),
    ("\\(", "\\)"),
    ("`", "`"),
)
_OPENING = re.compile(r"```|~~~|\$\$|\\begin\{|\\\[|\\\(|`|\$|\"|'")
_QUOTES = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', MASK: " "}
)
_LONGEST_QUOTATION = 300  # characters; a longer one is more likely two stray marks
_LONGEST_SINGLE_QUOTATION = 80  # apostrophes are everywhere

_TOKEN = re.compile(r"\ue000|\d+(?:[.,/:]\d+)*|[^\W\d]\w*(?:'[^\W\d]+)*|%|[.?!]+|…|[,;:()\[\]—–]")
_BULLET = re.compile(r"^[^\w\ue000]*(?:\d{1,3}[.)](?=\s))?[^\w\ue000]*")
_SENTENCE = re.compile(r"(?:(?<![.?!…])[.?!…]++[\"')\]*_]*+(?=\s|$))|\n")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|cf|vs|eq|eqs|fig|approx|resp|mr|mrs|ms|dr|prof)$")
# An even chance, not the end of an equation: `it is 50/50`, but `= 50/50 =` and `<<25+25=50>>50`.
_EVEN_CHANCE = re.compile(r"(?<=[a-z] )50 ?[-/–] ?50(?![\w.,]*\d)(?!\s*[=+*/<])")
_INTERJECTION = ((re.compile(r"h+m+"), "hmm"), (re.compile(r"u+h+"), "uh"), (re.compile(r"u+m+"), "um"))
_IS_AFTER = vocabulary("it that this there here what who he she how where which something everything")
_SUFFIX = {"'m": "am", "'re": "are", "'ll": "will", "'ve": "have", "'d": "would"}
_WITHOUT_APOSTROPHE = {
    word: tuple(parts.split())
    for word, parts in {
        "cannot": "can not",
        "cant": "can not",
        "dont": "do not",
        "doesnt": "does not",
        "didnt": "did not",
        "isnt": "is not",
        "arent": "are not",
        "wasnt": "was not",
        "couldnt": "could not",
        "wouldnt": "would not",
        "wont": "will not",
        "im": "i am",
        "ive": "i have",
        "thats": "that is",
        "dunno": "do not know",
        "percent": "%",
        "nevermind": "never mind",
        "won't": "will not",
        "can't": "can not",
        "shan't": "shall not",
        "let's": "let us",
    }.items()
}


def sentences(text: str) -> list[str]:
    """The sentences of a step, lower case, with formulas, code and quotations masked.

    A sentence ends at `.`, `?`, `!` or `…` before white space, and at every line break: model output is not
    hard-wrapped, and lists and headings have no full stops. Bullets and numbers of lists are dropped, and so are
    sentences without a letter or a digit.
    """
    masked = mask(unicodedata.normalize("NFC", text).lower().translate(_QUOTES))
    masked = _EVEN_CHANCE.sub("fifty fifty", masked)
    found, start = [], 0
    for match in _SENTENCE.finditer(masked):
        if match.group() == "." and _ABBREVIATION.search(
            masked, max(start, match.start() - 8), match.start()
        ):
            continue
        if match.group() == "." and _is_list_number(masked, start, match.start()):
            continue
        found.append(masked[start : match.end()])
        start = match.end()
    found.append(masked[start:])
    stripped = (_BULLET.sub("", sentence.strip(), count=1) for sentence in found)
    return [sentence for sentence in stripped if any(c.isalnum() or c == MASK for c in sentence)]


def _is_list_number(text: str, start: int, stop: int) -> bool:
    """Is this the full stop of `2.` at the beginning of a line?"""
    head = text[start:stop].strip()
    return len(head) <= 3 and head.isdigit()


def mask(text: str) -> str:
    """The text with each formula, piece of code and quotation replaced by ` MASK `.

    One pass; a mark that is never closed stays as it is, and is remembered, so that the time is linear.
    """
    out: list[str] = []
    position = 0
    unclosed: set[str] = set()
    while match := _OPENING.search(text, position):
        opening = match.group()
        end = -1 if opening in unclosed else _closing(text, match.start(), opening, unclosed)
        if end < 0:
            out.append(text[position : match.end()])
            position = match.end()
        else:
            out += (text[position : match.start()], f" {MASK} ")
            position = end
    out.append(text[position:])
    return "".join(out)


def _closing(text: str, start: int, opening: str, unclosed: set[str]) -> int:
    """One past the end of what opens at `start`, or -1."""
    if opening == "$":
        return _inline_formula(text, start)
    if opening in ('"', "'"):
        return _quotation(text, start, opening)
    closing = dict(_BLOCKS)[opening]
    end = text.find(closing, start + len(opening))
    if end < 0:
        unclosed.add(opening)
        return -1
    end += len(closing)
    if closing == "\\end{":
        brace = text.find("}", end, end + 40)
        end = end if brace < 0 else brace + 1
    return end


def _inline_formula(text: str, start: int) -> int:
    """`$x$` but not `$5 and $6`: no space inside the marks, no digit after the second (the rule of Pandoc)."""
    if text[start + 1 : start + 2].isspace():
        return -1
    end = text.find("$", start + 1)
    if end < 0 or end == start + 1 or text[end - 1].isspace() or "\n" in text[start:end]:
        return -1
    return -1 if text[end + 1 : end + 2].isdigit() else end + 1


def _quotation(text: str, start: int, mark: str) -> int:
    before, after = text[start - 1 : start], text[start + 1 : start + 2]
    if before.isalnum() or not after.strip() or (mark == "'" and not after.isalnum()):
        return -1  # an apostrophe, an inch, or a closing mark
    limit = start + 1 + (_LONGEST_QUOTATION if mark == '"' else _LONGEST_SINGLE_QUOTATION)
    line = text.find("\n", start, limit)
    limit = limit if line < 0 else line
    end = text.find(mark, start + 1, limit)
    while end >= 0:
        if mark == '"' or not (text[end + 1 : end + 2].isalnum() or text[end - 1].isspace()):
            return end + 1
        end = text.find(mark, end + 1, limit)
    return -1


def words(sentence: str) -> list[str]:
    """Tokens of a masked sentence: words with their contractions opened (`can't` -> `can not`), numbers, marks."""
    tokens: list[str] = []
    for token in _TOKEN.findall(sentence):
        tokens += _expand(token.strip("_")) if token[0].isalpha() else [token]
    return tokens


def _expand(token: str) -> list[str]:
    if token in _WITHOUT_APOSTROPHE:
        return list(_WITHOUT_APOSTROPHE[token])
    for pattern, plain in _INTERJECTION:
        if pattern.fullmatch(token):
            return [plain]
    stem, mark, tail = token.partition("'")
    if not mark:
        return [token]
    if tail == "t" and stem.endswith("n"):
        return [stem[:-1], "not"] if len(stem) > 1 else ["not"]  # `n't` alone, cut off what it negates
    if tail == "s":
        return [stem, "is" if stem in _IS_AFTER else "'s"]
    return [stem, _SUFFIX.get("'" + tail, "'" + tail)]
