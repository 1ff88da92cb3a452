"""A picture as a list of marks, in pixels: what a chart lays out, and SVG and PNG both draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias


@dataclass(frozen=True)
class Line:
    """A straight line; `style` is a key of `armor.report.style.STYLES`, as everywhere here."""

    x1: float
    y1: float
    x2: float
    y2: float
    style: str


@dataclass(frozen=True)
class Rect:
    """A filled rectangle; `tip` is what a pointer resting on it reads."""

    x: float
    y: float
    width: float
    height: float
    style: str
    opacity: float = 1.0
    tip: str = ""


@dataclass(frozen=True)
class Dot:
    """A filled circle; `tip` as of a `Rect`."""

    x: float
    y: float
    radius: float
    style: str
    tip: str = ""


@dataclass(frozen=True)
class Text:
    """One line of text, vertically centred on `y`; `anchor` is "start", "middle" or "end".

    `upright` text reads from bottom to top, centred on the point.
    """

    x: float
    y: float
    text: str
    anchor: str = "start"
    style: str = "label"
    upright: bool = False


@dataclass(frozen=True)
class Curve:
    """Straight pieces through `points`."""

    points: tuple[tuple[float, float], ...]
    style: str
    opacity: float = 1.0
    tip: str = ""


Mark: TypeAlias = Line | Rect | Dot | Text | Curve


@dataclass(frozen=True)
class Picture:
    """Marks on a canvas of `width` by `height`; `title` and `description` are the alt text."""

    width: float
    height: float
    title: str
    description: str
    marks: tuple[Mark, ...]


def move(mark: Mark, right: float, down: float) -> Mark:
    """The mark, elsewhere."""
    if isinstance(mark, Line):
        return replace(
            mark, x1=mark.x1 + right, x2=mark.x2 + right, y1=mark.y1 + down, y2=mark.y2 + down
        )
    if isinstance(mark, Curve):
        return replace(mark, points=tuple((x + right, y + down) for x, y in mark.points))
    return replace(mark, x=mark.x + right, y=mark.y + down)


def sheet(
    title: str,
    panels: Sequence[tuple[str, Picture]],
    key: Mapping[str, Rect | Line],
    columns: int = 4,
) -> Picture:
    """Pictures with their captions as one, row by row, and below them what the marks of `key`
    (drawn from the origin, at most 18 wide) stand for."""
    columns = min(columns, len(panels))
    width = max(picture.width for _, picture in panels) + 16
    height = max(picture.height for _, picture in panels) + 34
    marks: list[Mark] = []
    for index, (caption, picture) in enumerate(panels):
        right, down = width * (index % columns) + 8, height * (index // columns)
        marks.append(Text(right, down + 10, caption, style="caption"))
        marks += [move(mark, right, down + 24) for mark in picture.marks]
    rows = -(-len(panels) // columns)
    x, y = 8.0, height * rows + 4
    for text, mark in key.items():
        marks += [move(mark, x, y), Text(x + 24, y, text, style="value")]
        x += 44 + 8.4 * len(text)
    described = " ".join(picture.description for _, picture in panels)
    return Picture(width * columns, height * rows + 12, title, described, tuple(marks))
