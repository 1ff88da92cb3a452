"""Which layers hurt: each one's share of the summed output error, by kind and depth."""

from __future__ import annotations

from armor.report.charts.axes import WIDTH, across, clip, text_width
from armor.report.charts.layers import by_kind
from armor.report.data import Layer, Run
from armor.report.numbers import percent
from armor.report.picture import Mark, Picture, Rect, Text
from armor.report.scale import Scale

_MOST = 10


def error_map(run: Run) -> Picture:
    """A cell for each kind and block, the darker the larger its share; experts are summed."""
    cells: dict[str, dict[int, float]] = {}
    for kind, layers in by_kind(run.layers).items():
        row = cells.setdefault(clip(kind), {})
        for layer in layers:
            row[layer.depth] = row.get(layer.depth, 0.0) + (run.share(layer) or 0.0)
    depths = sorted({depth for row in cells.values() for depth in row})
    left = 10.0 + max(text_width(kind) for kind in cells)
    right, top, height = WIDTH - 8, 8.0, 28.0
    slot = (right - left - 8) / len(depths)
    gap = 2.0 if slot > 8 else 0.5
    most = max(share for row in cells.values() for share in row.values()) or 1.0
    marks: list[Mark] = []
    for index, (kind, row) in enumerate(cells.items()):
        y = top + height * index
        marks.append(Text(left, y + height / 2, kind, "end"))
        for depth, share in row.items():
            x = left + 8 + slot * depths.index(depth)
            tip = f"{kind}, block {depth}: {percent(share)}"
            box = (x, y + 1, slot - gap, height - 2)
            marks.append(Rect(*box, "bar", round(0.07 + 0.93 * share / most, 3), tip))
    bottom = top + height * len(cells)
    every = max(1, -(-len(depths) // 12))
    for place, depth in enumerate(depths[::every]):
        x = left + 8 + slot * (place * every + 0.5)
        marks.append(Text(x, bottom + 11, str(depth), "middle", "tick"))
    marks.append(Text((left + right) / 2, bottom + 29, "depth (block)", "middle", "axis"))
    y, steps = bottom + 50, 6
    for step in range(steps):
        opacity = round(0.07 + 0.93 * step / (steps - 1), 3)
        marks.append(Rect(left + 8 + 18 * step, y - 5, 18, 10, "bar", opacity))
    marks.append(Text(left + 2, y, "0 %", "end", "tick"))
    marks.append(Text(left + 14 + 18 * steps, y, f"{percent(most)} of the error", style="tick"))
    described = "; ".join(f"{kind} {percent(sum(row.values()))}" for kind, row in cells.items())
    title = "Share of the output error by kind and depth"
    return Picture(WIDTH, y + 14, title, f"Summed over depth: {described}.", tuple(marks))


def worst_layers(run: Run) -> Picture:
    """The layers with the largest shares, as bars."""
    ordered = sorted(run.layers, key=lambda layer: layer.record.output_error or 0.0, reverse=True)[
        :_MOST
    ]
    names = {layer.name: clip(_short(layer), 24) for layer in ordered}
    shares = {layer.name: run.share(layer) or 0.0 for layer in ordered}
    left, top, row = 10.0 + max(map(text_width, names.values())), 8.0, 22.0
    bottom = top + row * len(ordered)
    scale = Scale(0.0, 100 * max(shares.values()) or 1.0, left + 8, WIDTH - 58)
    marks: list[Mark] = across(scale, top, bottom, "share of the summed output error (%)", 5)
    for index, layer in enumerate(ordered):
        y, share = top + row * index, shares[layer.name]
        width = scale(100 * share) - scale(0.0)
        marks += [
            Text(left, y + row / 2, names[layer.name], "end"),
            Rect(scale(0.0), y + 4, width, row - 8, "bar", tip=f"{layer.name}: {percent(share)}"),
            Text(scale(100 * share) + 6, y + row / 2, percent(share), style="value"),
        ]
    described = "; ".join(f"{names[name]} {percent(share)}" for name, share in shares.items())
    title = f"The {len(ordered)} layers with the most output error"
    return Picture(WIDTH, bottom + 44, title, f"{described}.", tuple(marks))


def _short(layer: Layer) -> str:
    """Block and kind, and the expert's number if it is one."""
    parts = layer.name.split(".")
    numbers = [part for part in parts if part.isdecimal()]
    return ".".join([*numbers, layer.kind])
