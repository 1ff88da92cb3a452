"""The two pictures of a comparison: perplexity by method, and perplexity against size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from armor.report.numbers import perplexity
from armor.report.scale import Scale, fit
from armor.report.svg import label, line, picture, tag

_WIDTH = 420.0
_BOTTOM = 240.0  # of the plot, so that both pictures are equally high


@dataclass(frozen=True)
class Point:
    """A method on one text: its label, kind ("dense", "armor" or "baseline"), perplexity, and the
    bytes of its linears as a share of dense."""

    name: str
    kind: str
    perplexity: float
    size: float


def drawable(points: Sequence[Point]) -> list[Point]:
    """The points with a finite perplexity."""
    return [point for point in points if math.isfinite(point.perplexity)]


def method_chart(points: Sequence[Point], text: str) -> Markup:
    """A row for each method, its perplexity as a dot, and its distance from dense as a line."""
    # Labels are at most 13 px bold: 8.4 px a letter.
    top, left = 12.0, 10.0 + 8.4 * max(len(point.name) for point in points)
    row = max(26.0, (_BOTTOM - top) / len(points))
    bottom = top + row * len(points)
    scale = fit([point.perplexity for point in points], left + 10, _WIDTH - 60)
    dense = next((p.perplexity for p in points if p.kind == "dense"), scale.low)
    parts = [_vertical_grid(scale, top, bottom, _axis_title("perplexity", scale))]
    parts.append(line(scale(dense), top, scale(dense), bottom, "reference"))
    for index, point in enumerate(points):
        y, x = top + row * (index + 0.5), scale(point.perplexity)
        shown = perplexity(point.perplexity)
        parts += [
            label(left, y, point.name, "end", f"label {point.kind}"),
            line(scale(dense), y, x, y, f"stem {point.kind}"),
            tag("circle", cx=x, cy=y, r=5.5, class_=f"dot {point.kind}"),
            label(x + 10, y, shown, class_=f"value {point.kind}"),
        ]
    described = "; ".join(f"{point.name} {perplexity(point.perplexity)}" for point in points)
    title = f"Perplexity by method on {text}"
    return picture(_WIDTH, bottom + 44, title, f"Lower is better: {described}.", *parts)


def size_chart(points: Sequence[Point], text: str) -> Markup:
    """Each method as a dot: bytes of the linears across, perplexity upwards."""
    left, right, top, bottom = 52.0, _WIDTH - 12, 12.0, _BOTTOM
    sizes = [point.size for point in points]
    across = Scale(min(0.5, *sizes) - 0.04, max(1.0, *sizes) + 0.04, left, right)
    up = fit([point.perplexity for point in points], bottom - 8, top + 8)
    parts = [
        _vertical_grid(across, top, bottom, "bytes of the pruned linears, share of dense", 9),
        _horizontal_grid(up, left, right),
        tag(
            "text",
            _axis_title("perplexity", up),
            transform=f"translate(13 {(top + bottom) / 2:.0f}) rotate(-90)",
            text_anchor="middle",
            class_="axis",
        ),
    ]
    ordered = sorted(points, key=lambda point: up(point.perplexity))
    heights = spread([up(point.perplexity) for point in ordered], 15.0, top + 6, bottom - 6)
    for point, height in zip(ordered, heights, strict=True):
        x, y = across(point.size), up(point.perplexity)
        side = 1 if x < (left + right) / 2 else -1
        parts += [
            line(x, y, x + side * 12, height, "leader"),
            tag("circle", cx=x, cy=y, r=5.5, class_=f"dot {point.kind}"),
            label(
                x + side * 15, height, point.name, "start" if side > 0 else "end",
                f"label {point.kind}",
            ),
        ]  # fmt: skip
    described = "; ".join(f"{p.name} {perplexity(p.perplexity)} at {p.size:.3f}" for p in points)
    title = f"Perplexity against size on {text}"
    note = f"Lower left is better: {described} of the dense bytes."
    return picture(_WIDTH, bottom + 44, title, note, *parts)


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


def _axis_title(name: str, scale: Scale) -> str:
    return f"{name} (log scale)" if scale.log else name


def _vertical_grid(scale: Scale, top: float, bottom: float, title: str, most: int = 6) -> Markup:
    parts = []
    for tick in scale.ticks(most):
        x = scale(tick)
        parts += [
            line(x, top, x, bottom, "grid"),
            label(x, bottom + 14, f"{tick:,g}", "middle", "tick"),
        ]
    middle = (scale.start + scale.end) / 2
    return Markup("").join([*parts, label(middle, bottom + 34, title, "middle", "axis")])


def _horizontal_grid(scale: Scale, left: float, right: float) -> Markup:
    parts = []
    for tick in scale.ticks():
        y = scale(tick)
        parts += [line(left, y, right, y, "grid"), label(left - 6, y, f"{tick:,g}", "end", "tick")]
    return Markup("").join(parts)
