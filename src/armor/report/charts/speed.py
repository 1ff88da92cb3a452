"""Speed against dense over the number of input rows, from the JSON of ``armor bench``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from armor.report.charts.axes import WIDTH, axis_title, upwards
from armor.report.numbers import geometric_mean
from armor.report.picture import Curve, Dot, Line, Mark, Picture, Text
from armor.report.scale import Scale

CONTENDERS = ("dense", "2:4", "ARMOR")
#: layer and batch -> contender -> its row of the benchmark.
Cases = dict[tuple[str, int], dict[str, Mapping[str, Any]]]


def cases(rows: Iterable[Mapping[str, Any]]) -> Cases:
    """The measurements by layer and batch; those that lack a contender are left out."""
    found: Cases = {}
    for row in rows:
        found.setdefault((row["layer"], row["batch"]), {})[row["contender"]] = row
    return {key: case for key, case in found.items() if set(CONTENDERS) <= set(case)}


def speedup(case: Mapping[str, Mapping[str, Any]], contender: str) -> float:
    """Dense seconds over the contender's."""
    return float(case["dense"]["seconds"] / case[contender]["seconds"])


def speed_chart(found: Cases) -> Picture:
    """Thin lines: ARMOR on each layer; thick: geometric means of ARMOR and of plain 2:4."""
    batches = sorted({batch for _, batch in found})
    lines = {
        contender: [
            geometric_mean(speedup(case, contender) for (_, b), case in found.items() if b == batch)
            or 1.0
            for batch in batches
        ]
        for contender in CONTENDERS[1:]
    }
    layers: dict[str, dict[int, float]] = {}
    for (name, batch), case in found.items():
        layers.setdefault(name, {})[batch] = speedup(case, "ARMOR")
    every = [value for values in layers.values() for value in values.values()]
    every += [value for values in lines.values() for value in values]
    left, right, top, bottom = 46.0, WIDTH - 92, 10.0, 210.0
    wide = Scale(math.log2(batches[0]) - 0.2, math.log2(batches[-1]) + 0.2, left, right)
    log = max(every) > 6 * min(every)
    low = min(1.0, *every) / 1.15 if log else 0.0
    up = Scale(low, 1.12 * max(1.0, *every), bottom, top, log)
    marks: list[Mark] = [
        *upwards(up, left, right),
        Line(left, up(1.0), right, up(1.0), "reference"),
        Text(right + 6, up(1.0), "dense", style="value"),
    ]
    for batch in batches:
        marks.append(Text(wide(math.log2(batch)), bottom + 14, str(batch), "middle", "tick"))
    for name, values in layers.items():
        points = tuple((wide(math.log2(b)), up(v)) for b, v in sorted(values.items()))
        marks.append(Curve(points, "curve", 0.35, name))
    ends = {}
    for contender, style in (("2:4", "curve-base"), ("ARMOR", "curve-strong")):
        points = tuple(
            (wide(math.log2(b)), up(v)) for b, v in zip(batches, lines[contender], strict=True)
        )
        marks.append(Curve(points, style))
        if contender == "ARMOR":
            marks += [Dot(x, y, 4.5, "dot-armor") for x, y in points]
        ends[contender] = points[-1][1]
    apart = max(0.0, 16 - abs(ends["ARMOR"] - ends["2:4"])) / 2
    up_down = -1 if ends["ARMOR"] < ends["2:4"] else 1
    title, middle = axis_title("speed, dense = 1", up), (top + bottom) / 2
    marks += [
        Text(right + 6, ends["ARMOR"] + up_down * apart, "ARMOR", style="label-armor"),
        Text(right + 6, ends["2:4"] - up_down * apart, "plain 2:4", style="value"),
        Text((left + right) / 2, bottom + 34, "rows of input (log scale)", "middle", "axis"),
        Text(9, middle, title, "middle", "axis", upright=True),
    ]
    described = "; ".join(
        f"{batch} rows {lines['ARMOR'][place]:.2f}" for place, batch in enumerate(batches)
    )
    note = f"Geometric mean over {len(layers)} shapes, ARMOR over dense: {described}."
    return Picture(WIDTH, bottom + 44, "Speed against dense by rows of input", note, tuple(marks))
