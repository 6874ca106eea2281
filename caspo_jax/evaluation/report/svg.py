"""Axes and marks as inline SVG whose colours come from the page's style sheet, so that light and dark both fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 372, 232  # of a figure: one column on a phone, so that its text is never scaled down
SERIES = 6  # colours of the style sheet: .s0 ... .s5


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture with what stands above and below it; legend: (mark class, text)."""

    title: str
    svg: str
    note: str = ""
    legend: Sequence[tuple[str, str]] = ()


def number(value: float) -> str:
    """A coordinate or a label, as short as it can be."""
    return f"{value:.2f}".rstrip("0").rstrip(".").replace("-0", "0" if abs(value) < 0.005 else "-0")


def tag(name: str, text: str | None = None, **attributes: object) -> str:
    """An SVG element; `text` is escaped, `_` in names stands for `-`, `class_` for `class`."""
    parts = [
        f' {k.rstrip("_").replace("_", "-")}="{escape(number(v) if isinstance(v, float) else str(v))}"'
        for k, v in attributes.items()
        if v is not None
    ]
    return f"<{name}{''.join(parts)}" + ("/>" if text is None else f">{escape(text)}</{name}>")


def hover(mark: str, text: str) -> str:
    """A mark with a text that shows while the pointer rests on it."""
    return f"<g>{tag('title', text)}{mark}</g>"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between low and high, about `wanted` of them."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float, spacing: float) -> str:
    """A tick's label with as many digits as the spacing of the ticks asks for."""
    digits = max(0, -math.floor(math.log10(spacing) + 1e-9)) if spacing > 0 else 0
    if digits and abs(spacing * 10**digits - round(spacing * 10**digits)) > 1e-6:
        digits += 1
    return f"{value:,.{digits}f}"


class Panel:
    """One pair of axes in a figure, in data units."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        left: float = 40,
        right: float = 10,
        top: float = 8,
        bottom: float = 34,
        height: float = HEIGHT,
        width: float = WIDTH,
    ):
        self.x, self.y = x, y
        self.left, self.right, self.top, self.bottom = left, width - right, top, height - bottom
        self.width, self.height = width, height
        self.marks: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Data to picture."""
        (x0, x1), (y0, y1) = self.x, self.y
        across = (x - x0) / (x1 - x0 or 1)
        up = (y - y0) / (y1 - y0 or 1)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def add(self, *marks: str) -> None:
        """Draw on top of what is there."""
        self.marks.extend(marks)

    def grid(
        self, x_title: str, y_title: str, *, x_ticks: int = 5, y_ticks: int = 5, whole: bool = False
    ) -> None:
        """Ticks with faint lines, and what the axes show; `whole`: no fractions on the x axis."""
        if y_ticks:
            values = ticks(*self.y, y_ticks)
            gap = values[1] - values[0] if len(values) > 1 else 1.0
            for value in values:
                _, y = self.at(self.x[0], value)
                self.add(tag("line", x1=self.left, x2=self.right, y1=y, y2=y, class_="grid"))
                self.add(tag("text", label(value, gap), x=self.left - 6, y=y + 3.5, class_="tick end"))
        values = [v for v in ticks(*self.x, x_ticks) if not whole or v == round(v)] if x_ticks else []
        gap = values[1] - values[0] if len(values) > 1 else 1.0
        for value in values:
            x, _ = self.at(value, self.y[0])
            self.add(tag("line", x1=x, x2=x, y1=self.bottom, y2=self.bottom + 3, class_="axis"))
            self.add(tag("text", label(value, gap), x=x, y=self.bottom + 14, class_="tick middle"))
        self.add(tag("line", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom, class_="axis"))
        self.add(
            tag("text", x_title, x=(self.left + self.right) / 2, y=self.height - 4, class_="title middle")
        )
        if y_title:
            middle = (self.top + self.bottom) / 2
            self.add(
                tag("text", y_title, transform=f"translate(10 {number(middle)}) rotate(-90)").replace(
                    "<text", '<text class="title middle"', 1
                )
            )

    def line(self, xs: Sequence[float], ys: Sequence[float], class_: str) -> None:
        """A polyline through the finite points."""
        points = [self.at(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if points:
            path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
            self.add(tag("polyline", points=path, class_=f"line {class_}"))

    def render(self, description: str) -> str:
        """The figure."""
        box = f"0 0 {number(self.width)} {number(self.height)}"
        return (
            f'<svg viewBox="{box}" role="img" aria-label="{escape(description)}">{"".join(self.marks)}</svg>'
        )
