"""The helper process of `grading`: run as a script, it imports nothing of the package.

Reads `{"gold", "answer", "seconds"}` a line. Writes `{"reading": "gold"}`, `{"reading": "answer"}` and
`{"reading": null}` as it gets to each and to comparing them, and at last `{"equal"}` or `{"timeout": true}`, a line each.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
import time
from typing import Any

# Arguments without braces, beside digits: math-verify misreads what holds them.
_SYMBOL = (
    r"\\(?:pi|alpha|beta|gamma|delta|epsilon|varepsilon|eta|theta|lambda|mu|nu|xi|rho|sigma|tau|phi|varphi|chi|psi|omega"
    r"|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|infty)(?![a-zA-Z])"
)
_LOOSE = rf"(\\sqrt\s*(?:\{{[^{{}}]*\}}|\w)|{_SYMBOL}|[a-zA-Z])"
_GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_UNBRACED = (
    re.compile(rf"(\\sqrt)\s*({_SYMBOL})"),
    re.compile(rf"(\\[dtc]?frac)(?![a-zA-Z])\s*{_LOOSE}"),
    re.compile(rf"(\\[dtc]?frac\s*(?:{_GROUP}|\d))\s*{_LOOSE}"),
)
_SMALL, _CLOSE = 1e-3, 5e-4  # relative difference
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,} [A-Za-z]{3,}")


def main() -> None:
    """Serves comparisons until its input ends."""
    try:
        from math_verify import parse, verify
        from math_verify.errors import TimeoutException
    except ImportError as error:
        _reply({"error": str(error)})
        return
    logging.disable(logging.CRITICAL)
    parse("$1$", parsing_timeout=None)  # builds its tables, which is nobody's time
    _reply({"ready": True})

    @functools.lru_cache(maxsize=4096)  # a gold answer is read once for all samples
    def read(text: str, seconds: int) -> list[Any]:
        text = braced(text)
        # Anchored as a formula first, unless it is prose; else as it stands.
        anchored = "$" in text or "\\boxed" in text or _PROSE.search(text)
        found, late = [], None
        for form in dict.fromkeys((text if anchored else f"${text}$", text)):
            try:
                found = parse(form, parsing_timeout=seconds, raise_on_error=True)
            except TimeoutException as error:
                late = error
            except Exception:  # of the parser, on text that is no mathematics
                logging.debug("not read: %r", form)
            if found:
                return found
        if late is not None:
            raise late
        return found

    for line in sys.stdin:
        request = json.loads(line)
        seconds = max(1, round(request["seconds"]))
        try:
            _reply({"reading": "gold"})
            gold = read(request["gold"], seconds)
            _reply({"reading": "answer"})
            answer = read(request["answer"], seconds)
            _reply({"reading": None})
            # By itself verify takes an interval for an inequality, never an inequality for an interval.
            solved = all(map(is_solved, answer))
            started = time.monotonic()
            equal = verify(gold, answer, timeout_seconds=seconds, allow_set_relation_comp=solved)
            if not equal and time.monotonic() - started >= seconds:  # which it keeps to itself
                raise TimeoutException
            misread = differ_though_small(gold, answer) or bounds_for_points(gold, answer)
            _reply({"equal": bool(equal) and not misread})
        except TimeoutException:
            _reply({"timeout": True})


def is_solved(read: Any) -> bool:
    """Whether it has no inequality, or only bounds of a symbol: `1 < x < 2`; `x^2 < 4` repeats a question."""
    from sympy.core.relational import Relational

    relations = read.atoms(Relational) if hasattr(read, "atoms") else ()
    return all(
        any(side.is_Symbol for side in relation.args) and any(side.is_number for side in relation.args)
        for relation in relations
    )


def bounds_for_points(gold: list[Any], answer: list[Any]) -> bool:
    r"""Whether one is an inequality and the other a set of points: verify takes the ends of `1 < x < 2` for `\{1, 2\}`."""
    from sympy import And, FiniteSet
    from sympy.core.relational import Equality, Relational

    def bounds(side: list[Any]) -> bool:
        return any(isinstance(r, And | Relational) and not isinstance(r, Equality) for r in side)

    def points(side: list[Any]) -> bool:
        return any(isinstance(read, FiniteSet) for read in side)

    return (bounds(gold) and points(answer)) or (points(gold) and bounds(answer))


def differ_though_small(gold: list[Any], answer: list[Any]) -> bool:
    """Whether all that was read are small numbers that differ: math-verify compares six places, all of them zeros."""
    ones, others = ([n for n in map(_size, side) if n is not None] for side in (gold, answer))
    pairs = [(one, other) for one in ones for other in others]
    return bool(pairs) and all(
        max(pair) < _SMALL and abs(pair[0] - pair[1]) > _CLOSE * max(pair) for pair in pairs
    )


def _size(read: Any) -> Any:
    """Its absolute value where it is a real number: a decimal of sympy's, which 1/2004! does not underflow."""
    if not getattr(read, "is_number", False):
        return None
    try:
        value = read.evalf(15)
    except (TypeError, ValueError, OverflowError):
        return None
    return abs(value) if value.is_Float or value.is_Integer else None


def braced(text: str) -> str:
    r"""The text with braces about letters and symbols after `\frac` and `\sqrt`: `\frac{\pi}{x}` of `\frac\pi x`."""
    text = text.replace(r"\varnothing", r"\emptyset")  # which alone it knows
    for pattern in _UNBRACED:
        text = pattern.sub(r"\1{\2}", text)
    return text


def _reply(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
