"""The two pictures of a comparison: perplexity by method, and perplexity against size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from armor.report.charts.axes import WIDTH, across, axis_title, spread, text_width, upwards
from armor.report.numbers import perplexity
from armor.report.picture import Dot, Line, Mark, Picture, Text
from armor.report.scale import Scale, fit

_BOTTOM = 240.0  # of the plot, so that both pictures are equally high


@dataclass(frozen=True)
class Point:
    """A method on one text: its label, kind ("dense", "armor" or "baseline"), perplexity, and the
    bytes of its linears as a share of dense."""

    name: str
    kind: str
    perplexity: float
    size: float

    def style(self, base: str) -> str:
        """The style of its mark."""
        known = {"dot": ("armor", "dense")}.get(base, ("armor",))
        return f"{base}-{self.kind}" if self.kind in known else base


def drawable(points: Sequence[Point]) -> list[Point]:
    """The points with a finite perplexity."""
    return [point for point in points if math.isfinite(point.perplexity)]


def method_chart(points: Sequence[Point], text: str) -> Picture:
    """A row for each method, its perplexity as a dot, and its distance from dense as a line."""
    top, left = 12.0, 10.0 + max(text_width(point.name) for point in points)
    row = max(26.0, (_BOTTOM - top) / len(points))
    bottom = top + row * len(points)
    scale = fit([point.perplexity for point in points], left + 10, WIDTH - 60)
    dense = next((p.perplexity for p in points if p.kind == "dense"), scale.low)
    marks: list[Mark] = across(scale, top, bottom, axis_title("perplexity", scale))
    marks.append(Line(scale(dense), top, scale(dense), bottom, "reference"))
    for index, point in enumerate(points):
        y, x = top + row * (index + 0.5), scale(point.perplexity)
        marks += [
            Text(left, y, point.name, "end", point.style("label")),
            Line(scale(dense), y, x, y, point.style("stem")),
            Dot(x, y, 5.5, point.style("dot")),
            Text(x + 10, y, perplexity(point.perplexity), "start", point.style("value")),
        ]
    described = "; ".join(f"{point.name} {perplexity(point.perplexity)}" for point in points)
    title = f"Perplexity by method on {text}"
    return Picture(WIDTH, bottom + 44, title, f"Lower is better: {described}.", tuple(marks))


def size_chart(points: Sequence[Point], text: str) -> Picture:
    """Each method as a dot: bytes of the linears across, perplexity upwards."""
    left, right, top, bottom = 52.0, WIDTH - 12, 12.0, _BOTTOM
    sizes = [point.size for point in points]
    wide = Scale(min(0.5, *sizes) - 0.04, max(1.0, *sizes) + 0.04, left, right)
    up = fit([point.perplexity for point in points], bottom - 8, top + 8)
    marks: list[Mark] = [
        *across(wide, top, bottom, "bytes of the pruned linears, share of dense", 9),
        *upwards(up, left, right),
        Text(9, (top + bottom) / 2, axis_title("perplexity", up), "middle", "axis", upright=True),
    ]
    ordered = sorted(points, key=lambda point: up(point.perplexity))
    heights = spread([up(point.perplexity) for point in ordered], 15.0, top + 6, bottom - 6)
    for point, height in zip(ordered, heights, strict=True):
        x, y = wide(point.size), up(point.perplexity)
        side = 1 if x < (left + right) / 2 else -1
        anchor = "start" if side > 0 else "end"
        marks += [
            Line(x, y, x + side * 12, height, "leader"),
            Dot(x, y, 5.5, point.style("dot")),
            Text(x + side * 15, height, point.name, anchor, point.style("label")),
        ]
    described = "; ".join(f"{p.name} {perplexity(p.perplexity)} at {p.size:.3f}" for p in points)
    title = f"Perplexity against size on {text}"
    note = f"Lower left is better: {described} of the dense bytes."
    return Picture(WIDTH, bottom + 44, title, note, tuple(marks))
