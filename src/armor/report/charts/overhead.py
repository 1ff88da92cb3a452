"""What the wrappers cost: their parameters as a share of each layer's."""

from __future__ import annotations

from collections.abc import Sequence

from armor.report.charts.axes import WIDTH, across, clip, text_width
from armor.report.data import Layer
from armor.report.numbers import percent
from armor.report.picture import Line, Mark, Picture, Rect, Text
from armor.report.scale import Scale


def overhead_chart(layers: Sequence[Layer], budget: float | None) -> Picture:
    """A bar for each kind, shape and block; `budget` as a dashed line where blocks were chosen."""
    groups: dict[tuple[str, tuple[int, int], int | None], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((clip(layer.kind), layer.spec.shape, layer.spec.block), []).append(layer)
    left, top, row = 10.0 + max(text_width(kind) for kind, _, _ in groups), 8.0, 30.0
    bottom = top + row * len(groups)
    most = 100 * max([budget or 0.0, *(group[0].size.overhead for group in groups.values())])
    scale = Scale(0.0, most or 1.0, left + 8, WIDTH - 136)
    marks: list[Mark] = across(scale, top, bottom, "wrappers, % of the dense layer", 5)
    described = []
    for index, ((kind, shape, block), group) in enumerate(groups.items()):
        y, overhead = top + row * index, group[0].size.overhead
        width = scale(100 * overhead) - scale(0.0)
        note = f"{percent(overhead)}, block {block}" if block else "no wrappers"
        form = f"{shape[0]} × {shape[1]}, {len(group)} layers"
        marks += [
            Text(left, y + row / 2, kind, "end"),
            Rect(scale(0.0), y + 6, width, row - 12, "bar", tip=f"{kind}, {form}: {note}"),
            Text(scale(100 * overhead) + 6, y + row / 2, note, style="value"),
        ]
        described.append(f"{kind} ({form}) {note}")
    if budget is not None:
        x = scale(100 * budget)
        marks.append(Line(x, top, x, bottom, "reference"))
    title = "Overhead of the wrappers by layer"
    return Picture(WIDTH, bottom + 44, title, f"{'; '.join(described)}.", tuple(marks))
