"""Errors by depth: for each kind of layer a line for fitted tokens and one for held-out ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from armor.report.charts.axes import upwards
from armor.report.charts.layers import PANEL, by_kind
from armor.report.data import Layer
from armor.report.numbers import geometric_mean, percent
from armor.report.picture import Curve, Dot, Mark, Picture, Text
from armor.report.scale import Scale, fit

_HEIGHT = 148.0


@dataclass(frozen=True)
class Errors:
    """The layers of one kind in one block: relative errors, geometric means where there are
    several (experts)."""

    name: str
    depth: int
    fitted: float
    held_out: float


def errors_by_kind(layers: Iterable[Layer]) -> dict[str, list[Errors]]:
    """Of the layers that have both errors, neither zero; one a block and kind."""
    found: dict[str, list[Errors]] = {}
    usable = (
        layer for layer in layers if layer.record.fitted_error and layer.record.held_out_error
    )
    for kind, group in by_kind(usable).items():
        depths: dict[int, list[Layer]] = {}
        for layer in group:
            depths.setdefault(layer.depth, []).append(layer)
        for depth, twins in depths.items():
            name = twins[0].name if len(twins) == 1 else f"{len(twins)} layers of block {depth}"
            fitted = geometric_mean(twin.record.fitted_error or 0.0 for twin in twins)
            held_out = geometric_mean(twin.record.held_out_error or 0.0 for twin in twins)
            if fitted and held_out:
                found.setdefault(kind, []).append(Errors(name, depth, fitted, held_out))
    return found


def error_scale(kinds: Mapping[str, Sequence[Errors]]) -> Scale:
    """The common upward axis, in percent."""
    errors = [error for group in kinds.values() for error in group]
    values = [100 * value for error in errors for value in (error.fitted, error.held_out)]
    return fit(values, _HEIGHT - 36, 8.0)


def error_chart(kind: str, errors: Sequence[Errors], up: Scale) -> Picture:
    """Both errors against depth; a dot is a block."""
    left, right, bottom = 42.0, PANEL - 6, up.start
    slot = (right - left) / len(errors)
    middles = [left + slot * (index + 0.5) for index in range(len(errors))]
    radius = min(3.5, 0.4 * slot)
    marks: list[Mark] = upwards(up, left, right, 5)
    every = max(1, -(-len(errors) // 8))
    for middle, error in list(zip(middles, errors, strict=True))[::every]:
        marks.append(Text(middle, bottom + 11, str(error.depth), "middle", "tick"))
    for line, dot, what in (("curve-fitted", "dot", "fitted"), ("curve", "dot-armor", "held_out")):
        heights = [up(100 * getattr(error, what)) for error in errors]
        points = tuple(zip(middles, heights, strict=True))
        marks += [Curve(points, line)] if len(points) > 1 else []
        for (x, y), error in zip(points, errors, strict=True):
            tip = (
                f"{error.name}: fitted {percent(error.fitted)}, held-out {percent(error.held_out)}"
            )
            marks.append(Dot(x, y, radius, dot, tip))
    marks.append(Text((left + right) / 2, bottom + 28, "error (%) by depth", "middle", "axis"))
    ratio = geometric_mean(error.held_out / error.fitted for error in errors) or 0.0
    described = (
        f"{kind}: errors of {len(errors)} blocks by depth; held-out {ratio:.2f} times fitted"
        " (geometric mean)."
    )
    return Picture(PANEL, _HEIGHT, f"{kind}: error, fitted and held-out", described, tuple(marks))
