"""The lexicon's file and its small pattern language: words, alternatives, classes, options."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness.wording import MASK, vocabulary

Classes = Mapping[str, frozenset[str]]
Role = Literal["hedge", "booster", "correction", "neutral"]
ROLES: tuple[Role, ...] = get_args(Role)
PLAIN = 0.9  # decisiveness of an assertion without a mark (reasons: LexiconScorer)
COLUMNS = ("pattern", "role", "value", "negated", "category", "note")
FILE = "lexicon.tsv"

_REPEATS = 3  # words that `*` may take
_NUMERALS = vocabulary("one two three four five six seven eight nine ten eleven twelve")
# Words after which a clause begins.
_STARTERS = vocabulary("but and so oh ok okay no yes hmm well or then however yet ah though although because")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the lexicon."""

    pattern: str
    role: Role
    value: float | None  # decisiveness of a clause with this mark alone; None for neutral
    negated: float | None  # decisiveness when a booster is negated
    category: str
    note: str


@dataclasses.dataclass(frozen=True)
class _Element:
    words: frozenset[str]
    numbers: bool  # takes any number or formula
    anything: bool  # takes any word
    least: int
    most: int

    def takes(self, token: str) -> bool:
        if token in self.words:
            return True
        return (self.numbers and is_number(token)) or (self.anything and token[0].isalpha())


@dataclasses.dataclass(frozen=True)
class _Pattern:
    elements: tuple[_Element, ...]
    at_start: bool
    at_end: bool
    entry: Entry

    def match(self, tokens: Sequence[str], start: int, clause_start: bool) -> int:
        """One past the longest match that begins at `start`, or -1."""
        return -1 if self.at_start and not clause_start else self._match(tokens, start, 0)

    def _match(self, tokens: Sequence[str], position: int, element: int) -> int:
        if element == len(self.elements):
            if self.at_end and position < len(tokens) and tokens[position][0].isalnum():
                return -1
            return position
        wanted = self.elements[element]
        taken = 0
        while (
            taken < wanted.most and position + taken < len(tokens) and wanted.takes(tokens[position + taken])
        ):
            taken += 1
        for count in range(taken, wanted.least - 1, -1):
            end = self._match(tokens, position + count, element + 1)
            if end >= 0:
                return end
        return -1


@dataclasses.dataclass(frozen=True)
class Match:
    """A mark found at tokens [start, end)."""

    start: int
    end: int
    entry: Entry


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """Compiled entries; `find` gives the leftmost-longest matches of a sentence."""

    entries: tuple[Entry, ...]
    classes: Classes
    _by_word: dict[str, tuple[_Pattern, ...]] = dataclasses.field(repr=False, compare=False)
    _open: tuple[_Pattern, ...] = dataclasses.field(repr=False, compare=False)

    @classmethod
    def of(cls, entries: Sequence[Entry], classes: Classes) -> Lexicon:
        """Compile entries. Raises UserError for a pattern that could match nothing."""
        by_word: dict[str, list[_Pattern]] = {}
        open_: list[_Pattern] = []
        for entry in entries:
            pattern = _compile(entry, classes)
            first = pattern.elements[0]
            if first.numbers or first.anything:
                open_.append(pattern)
            else:
                for word in first.words:
                    by_word.setdefault(word, []).append(pattern)
        words = {word: tuple(found) for word, found in by_word.items()}
        return cls(tuple(entries), dict(classes), words, tuple(open_))

    def find(self, tokens: Sequence[str]) -> list[Match]:
        """Marks from left to right, the longest at each place (ties: the earlier line), none overlapping."""
        found = []
        position = 0
        opening = -1  # one past the last mark of a row of marks that opens a clause: `perhaps wait`
        while position < len(tokens):
            best, best_end = None, position
            clause_start = position in (0, opening) or _opens_clause(tokens[position - 1])
            for pattern in (*self._by_word.get(tokens[position], ()), *self._open):
                end = pattern.match(tokens, position, clause_start)
                if end > best_end:
                    best, best_end = pattern.entry, end
            if best is not None:
                found.append(Match(position, best_end, best))
                opening = best_end if clause_start else -1
            position = max(best_end, position + 1)
        return found


def _opens_clause(token: str) -> bool:
    return token in _STARTERS or not (token[0].isalnum() or token == MASK)


def is_number(token: str) -> bool:
    """A number in digits or words, or a masked formula."""
    return token[0].isdigit() or token == MASK or token in _NUMERALS


def load_lexicon(path: str | Path | None = None) -> Lexicon:
    """The library's lexicon, or one of your own.

    A tab-separated file with the columns pattern, role, value, negated, category, note; `-` is empty, a line that
    begins with `#` is a comment. A pattern is words with spaces between: `a|b` takes either, `<class>` a word of a
    class, `<num>` a number or formula, `<any>` any word; `x?` may be missing, `x*` takes up to three; `^` in front
    wants the beginning of a clause, `$` at the end the end of one. Words are lower case, contractions open
    (`can not`, `i am`), hyphens are spaces. The role `class` defines a class, its words in `note`; `<neg>` are the
    words that negate a booster, `<across>` those that they reach across.

    Raises:
      UserError: naming file:line and what is wrong.
    """
    if path is None:
        text = importlib.resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
        name = FILE
    else:
        name = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot read the lexicon {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    lines = enumerate(text.splitlines(), start=1)
    rows = [(n, line.split("\t")) for n, line in lines if line.strip() and not line.startswith("#")]
    if not rows or tuple(rows[0][1]) != COLUMNS:
        raise UserError(
            f"{name}:{rows[0][0] if rows else 1}: the first line must be {', '.join(COLUMNS)} (tabs)"
        )
    entries: list[Entry] = []
    classes: dict[str, frozenset[str]] = {}
    seen: dict[str, int] = {}
    for number, cells in rows[1:]:
        where = f"{name}:{number}"
        try:
            if cells[1:2] == ["class"]:
                classes[cells[0].strip("<> ")] = vocabulary(cells[-1])
                continue
            entry = _entry(cells)
            _compile(entry, classes)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if entry.pattern in seen:
            raise UserError(f"{where}: pattern {entry.pattern!r} is on line {seen[entry.pattern]} already")
        seen[entry.pattern] = number
        entries.append(entry)
    return Lexicon.of(entries, classes)


def _entry(cells: Sequence[str]) -> Entry:
    if len(cells) != len(COLUMNS):
        raise UserError(f"{len(cells)} columns for {len(COLUMNS)}: separate them by single tabs")
    pattern, role, value, negated, category, note = (cell.strip() for cell in cells)
    if role not in ROLES:
        raise UserError(f"unknown role {role!r}: choose from {', '.join(ROLES)}")
    number, number_negated = _number(value, "value"), _number(negated, "negated")
    if (role == "neutral") != (number is None):
        raise UserError("a neutral entry has no value, every other one has")
    low, high = (PLAIN, 1.0) if role == "booster" else (0.0, PLAIN)
    if number is not None and not low <= number <= high:
        raise UserError(f"value {number} of a {role} must be in [{low}, {high}]")
    if (role == "booster") != (number_negated is not None):
        raise UserError("a booster needs `negated`, nothing else has it")
    return Entry(pattern, role, number, number_negated, category, note)  # type: ignore[arg-type]


def _number(cell: str, name: str) -> float | None:
    if cell == "-":
        return None
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} {cell!r} is no number in [0, 1] (`-`: none)")
    return value


def _compile(entry: Entry, classes: Classes) -> _Pattern:
    parts = entry.pattern.split()
    at_start, at_end = parts[:1] == ["^"], parts[-1:] == ["$"]
    elements = tuple(_element(part, classes) for part in parts[at_start : len(parts) - at_end])
    if not elements or elements[0].least == 0:
        raise UserError(f"pattern {entry.pattern!r} must begin with a word that cannot be missing")
    return _Pattern(elements, at_start, at_end, entry)


def _element(part: str, classes: Classes) -> _Element:
    least = most = 1
    if len(part) > 1 and part[-1] in "?*":
        least, most = 0, 1 if part[-1] == "?" else _REPEATS
        part = part[:-1]
    found: set[str] = set()
    numbers = anything = False
    for word in part.split("|"):
        if word == "<num>":
            numbers = True
        elif word == "<any>":
            anything = True
        elif word.startswith("<") and word.endswith(">"):
            if word[1:-1] not in classes:
                raise UserError(
                    f"unknown class {word}: choose from {', '.join([*classes, 'num', 'any'])} (define it above)"
                )
            found |= classes[word[1:-1]]
        elif not word or word != word.lower():
            raise UserError(f"`{part}` must be lower-case words with single bars between")
        else:
            found.add(word)
    return _Element(frozenset(found), numbers, anything, least, most)
