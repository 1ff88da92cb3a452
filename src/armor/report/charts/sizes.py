"""Where the bytes are: the weights of the dense model and of each checkpoint, part by part."""

from __future__ import annotations

from collections.abc import Mapping

from armor.report.charts.axes import WIDTH, across, text_width
from armor.report.data import Sizes
from armor.report.numbers import size
from armor.report.picture import Mark, Picture, Rect, Text
from armor.report.scale import Scale

#: Part -> style and opacity.
_PARTS = {
    "core values": ("bar", 1.0),
    "indices": ("bar", 0.62),
    "wrappers": ("bar", 0.32),
    "dense linears": ("bar-base", 1.0),
    "everything else": ("bar-base", 0.4),
}


def size_breakdown(models: Mapping[str, Sizes]) -> Picture:
    """Stacked bars: the dense model (of the first entry), then each entry of `models`."""
    first = next(iter(models.values()))
    rows: dict[str, dict[str, float]] = {
        "dense": {"dense linears": first.dense, "everything else": first.rest}
    }
    for label, sizes in models.items():
        rows[label] = {
            "core values": sizes.values,
            "indices": sizes.indices,
            "wrappers": sizes.wrappers,
            "everything else": sizes.rest,
        }
    left = 10.0 + max(text_width(label) for label in rows)
    top, row = 8.0, 34.0
    bottom = top + row * len(rows)
    most = max(sum(parts.values()) for parts in rows.values())
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if most >= u / 2)
    scale = Scale(0.0, most / unit, left + 8, WIDTH - 66)
    marks: list[Mark] = across(scale, top, bottom, f"bytes of all weights ({name})", 5)
    for index, (label, parts) in enumerate(rows.items()):
        y, x = top + row * index + 7, scale(0.0)
        marks.append(Text(left, y + 10, label, "end"))
        for part, count in parts.items():
            width = scale(count / unit) - scale(0.0)
            style, opacity = _PARTS[part]
            marks.append(Rect(x, y, width, 20, style, opacity, f"{label}, {part}: {size(count)}"))
            x += width
        marks.append(Text(x + 6, y + 10, size(sum(parts.values())), style="value"))
    used = [part for part in _PARTS if any(parts.get(part) for parts in rows.values())]
    for index, part in enumerate(used):
        x, y = 12 + 136 * (index % 3), bottom + 58 + 20 * (index // 3)
        style, opacity = _PARTS[part]
        marks += [Rect(x, y - 6, 12, 12, style, opacity), Text(x + 18, y, part, style="value")]
    described = "; ".join(
        f"{label} {size(sum(parts.values()))}: "
        + ", ".join(f"{part} {size(count)}" for part, count in parts.items() if count)
        for label, parts in rows.items()
    )
    height = bottom + 58 + 20 * -(-len(used) // 3)
    return Picture(WIDTH, height, "Where the bytes are", f"{described}.", tuple(marks))
