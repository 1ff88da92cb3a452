"""Loss against time: for each kind of layer its solves, one line a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from armor.report.charts.axes import across, upwards
from armor.report.charts.layers import PANEL, by_kind
from armor.report.data import Layer
from armor.report.picture import Curve, Line, Mark, Picture
from armor.report.scale import Scale

_HEIGHT = 160.0
_MOST_LINES, _MOST_POINTS = 96, 48


@dataclass(frozen=True)
class Solve:
    """One layer's way down: seconds (or iterations) and losses over NoWag-P's."""

    layer: Layer
    steps: tuple[float, ...]
    ratios: tuple[float, ...]


def solves_by_kind(layers: Sequence[Layer]) -> tuple[dict[str, list[Solve]], str]:
    """The curves by kind, and the unit of their steps: "seconds" where every layer has times."""
    usable = [layer for layer in layers if len(layer.record.losses) > 1 and layer.record.nowag_loss]
    timed = all(layer.record.times for layer in usable)
    kinds = {
        kind: [_solve(layer, timed) for layer in _thinned(group, _MOST_LINES)]
        for kind, group in by_kind(usable).items()
    }
    return kinds, "seconds" if timed else "iterations"


def _solve(layer: Layer, timed: bool) -> Solve:
    record = layer.record
    steps = record.times if timed else range(len(record.losses))
    assert record.nowag_loss
    ratios = [loss / record.nowag_loss for loss in record.losses]
    # A GPU tells of some iterations at once, when the last is done: that one's loss was true then.
    known = dict(zip(steps, ratios, strict=True))
    points = _thinned(list(known.items()), _MOST_POINTS)
    return Solve(layer, tuple(float(x) for x, _ in points), tuple(y for _, y in points))


def _thinned(items: list, most: int) -> list:  # type: ignore[type-arg]
    """At most about `most` of them, evenly; the first and the last always."""
    if len(items) <= most:
        return items
    step = (len(items) - 1) / (most - 1)
    return [items[round(index * step)] for index in range(most)]


def height_scale(kinds: dict[str, list[Solve]]) -> Scale:
    """The common upward axis: logarithmic, up to 1 (NoWag-P) or more."""
    ratios = [ratio for group in kinds.values() for solve in group for ratio in solve.ratios]
    low = min((ratio for ratio in ratios if ratio > 0), default=0.5)
    high = max([1.0, *ratios])
    return Scale(min(low, 0.5) / 1.15, high * 1.1, _HEIGHT - 42, 8.0, log=True)


def curve_chart(kind: str, solves: Sequence[Solve], total: int, up: Scale, unit: str) -> Picture:
    """Loss over NoWag-P's against the time since the layer's start; deeper layers are darker.

    `total` is the number of layers, of which `solves` are some or all.
    """
    left, right, top, bottom = 44.0, PANEL - 10, up.end, up.start
    last = max(solve.steps[-1] for solve in solves)
    wide = Scale(0.0, last * 1.03 or 1.0, left, right)
    title = "seconds since its start" if unit == "seconds" else "iterations"
    marks: list[Mark] = [
        *across(wide, top, bottom, title, 4),
        *upwards(up, left, right, 5),
        Line(left, up(1.0), right, up(1.0), "reference"),
    ]
    depths = [solve.layer.depth for solve in solves]
    span = max(1, max(depths) - min(depths))
    for solve in solves:
        points = tuple(
            (wide(step), up(max(ratio, up.low)))
            for step, ratio in zip(solve.steps, solve.ratios, strict=True)
        )
        opacity = 0.3 + 0.7 * (solve.layer.depth - min(depths)) / span
        tip = (
            f"{solve.layer.name}: from {solve.ratios[0]:.3f} to {solve.ratios[-1]:.3f} of NoWag-P's"
            f" in {solve.steps[-1]:.3g} {unit}"
        )
        marks.append(Curve(points, "curve", round(opacity, 2), tip))
    first, end = (max(solve.ratios[place] for solve in solves) for place in (0, -1))
    described = (
        f"{kind}: {len(solves)} of {total} layers fall from {first:.2f} or less of NoWag-P's loss"
        f" to {end:.2f} or less, in at most {last:.3g} {unit}."
    )
    return Picture(PANEL, _HEIGHT, f"{kind}: loss against {unit}", described, tuple(marks))
