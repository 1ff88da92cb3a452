"""What charts share: grids with ticks, axis titles, labels kept apart."""

from __future__ import annotations

from collections.abc import Sequence

from armor.report.picture import Line, Mark, Text
from armor.report.scale import Scale

#: Width of a chart in pixels: what a phone shows without shrinking it much.
WIDTH = 420.0


def across(scale: Scale, top: float, bottom: float, title: str, most: int = 6) -> list[Mark]:
    """Vertical grid lines, their ticks below, and the axis title."""
    marks: list[Mark] = []
    for tick in scale.ticks(most):
        x = scale(tick)
        marks += [
            Line(x, top, x, bottom, "grid"),
            Text(x, bottom + 14, number(tick), "middle", "tick"),
        ]
    middle = (scale.start + scale.end) / 2
    return [*marks, Text(middle, bottom + 34, title, "middle", "axis")]


def upwards(scale: Scale, left: float, right: float, most: int = 6) -> list[Mark]:
    """Horizontal grid lines with their ticks on the left."""
    marks: list[Mark] = []
    for tick in scale.ticks(most):
        y = scale(tick)
        marks += [Line(left, y, right, y, "grid"), Text(left - 6, y, number(tick), "end", "tick")]
    return marks


def axis_title(name: str, scale: Scale) -> str:
    """The name, and that the axis is logarithmic where it is."""
    return f"{name} (log scale)" if scale.log else name


def number(value: float) -> str:
    """A tick as a reader expects it: no exponent where plain digits do."""
    return f"{value:,g}" if 1e-4 <= abs(value) < 1e6 or value == 0 else f"{value:.0e}"


def text_width(text: str) -> float:
    """Upper estimate of a label's width in pixels."""
    return 8.4 * len(text)


def clip(text: str, most: int = 20) -> str:
    """The text, its middle left out where it is longer than `most` letters."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the ascending `wanted`, at least `gap` apart, from `low` up; where there is
    room, not beyond `high`."""
    placed: list[float] = []
    for position in wanted:
        placed.append(max(position, placed[-1] + gap if placed else low))
    limit = high
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed
