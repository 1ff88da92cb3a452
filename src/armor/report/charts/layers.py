"""Proxy losses layer by layer: for each kind of layer a bar chart over depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from armor.report.charts.axes import upwards
from armor.report.data import Layer
from armor.report.numbers import geometric_mean
from armor.report.picture import Line, Mark, Picture, Rect, Text
from armor.report.scale import Scale

PANEL = 230.0
_HEIGHT = 132.0


@dataclass(frozen=True)
class Bar:
    """The layers of one kind in one block: losses relative to NoWag-P's, geometric means where
    there are several (experts); SparseGPT's is None where it was not run."""

    name: str
    depth: int
    ratio: float
    sparsegpt: float | None


def by_kind(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """The layers by the last part of their name, in model order."""
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer)
    return kinds


def bars_by_kind(layers: Iterable[Layer]) -> dict[str, list[Bar]]:
    """Bars of the layers that have a loss to compare; one a block and kind."""
    bars: dict[str, list[Bar]] = {}
    for kind, group in by_kind(layer for layer in layers if layer.ratio is not None).items():
        depths: dict[int, list[Layer]] = {}
        for layer in group:
            depths.setdefault(layer.depth, []).append(layer)
        for depth, twins in depths.items():
            ratio = geometric_mean(twin.ratio or 0.0 for twin in twins) or 0.0
            base = geometric_mean(
                twin.record.sparsegpt_loss / twin.record.nowag_loss
                for twin in twins
                if twin.record.sparsegpt_loss is not None and twin.record.nowag_loss
            )
            name = twins[0].name if len(twins) == 1 else f"{len(twins)} layers of block {depth}"
            bars.setdefault(kind, []).append(Bar(name, depth, ratio, base))
    return bars


def highest(kinds: Mapping[str, Sequence[Bar]]) -> float:
    """The largest ratio in any chart, at least 1: all charts share it as their top."""
    bars = [bar for group in kinds.values() for bar in group]
    return max([1.0, *(bar.ratio for bar in bars), *(bar.sparsegpt or 0.0 for bar in bars)])


def layer_chart(kind: str, bars: Sequence[Bar], top_value: float) -> Picture:
    """A bar for each block: its loss over NoWag-P's; a tick where SparseGPT ends."""
    left, right, top, bottom = 42.0, PANEL - 6, 8.0, _HEIGHT - 36
    up = Scale(0.0, top_value * 1.04, bottom, top)
    slot = (right - left) / len(bars)
    width = min(0.72 * slot, 26.0)
    marks: list[Mark] = upwards(up, left, right, 5)
    every = max(1, -(-len(bars) // 8))
    for index, bar in enumerate(bars):
        middle = left + slot * (index + 0.5)
        height = up(0.0) - up(bar.ratio)
        tip = f"{bar.name}: proxy loss {bar.ratio:.3f} of NoWag-P's"
        if bar.sparsegpt:
            tip += f", {bar.ratio / bar.sparsegpt:.3f} of SparseGPT's"
        marks.append(Rect(middle - width / 2, up(bar.ratio), width, height, "bar", tip=tip))
        if bar.sparsegpt is not None:
            y = up(bar.sparsegpt)
            marks.append(Line(middle - slot * 0.45, y, middle + slot * 0.45, y, "mark"))
        if index % every == 0:
            marks.append(Text(middle, bottom + 11, str(bar.depth), "middle", "tick"))
    marks.append(Line(left, up(1.0), right, up(1.0), "reference"))
    marks.append(Text((left + right) / 2, bottom + 28, "depth (block)", "middle", "axis"))
    mean = geometric_mean(bar.ratio for bar in bars) or 0.0
    described = f"{kind}: {len(bars)} bars by depth; geometric mean {mean:.3f}, 1 is NoWag-P."
    return Picture(PANEL, _HEIGHT, f"{kind}: proxy loss over NoWag-P's", described, tuple(marks))
