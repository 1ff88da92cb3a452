"""Proxy losses layer by layer: grouped by kind of layer and depth, one small bar chart a kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from armor.report.scale import Scale
from armor.report.svg import label, line, picture, tag

_WIDTH, _HEIGHT = 230.0, 132.0


@dataclass(frozen=True)
class Bar:
    """One layer: its losses relative to NoWag-P's (SparseGPT's is None where it was not run)."""

    name: str
    depth: int
    loss: float
    ratio: float
    sparsegpt: float | None


def bars_by_kind(records: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Bar]]:
    """Bars of the layers that lost something, by the last part of their name, in model order.

    Args:
        records: ``loss``, ``nowag_loss`` and ``sparsegpt_loss`` by layer name.
    """
    kinds: dict[str, list[Bar]] = {}
    for name, record in records.items():
        base = record["nowag_loss"]
        if not base:
            continue
        sparsegpt = record.get("sparsegpt_loss")
        bar = Bar(
            name,
            next((int(part) for part in name.split(".") if part.isdigit()), 0),
            record["loss"],
            record["loss"] / base,
            None if sparsegpt is None else sparsegpt / base,
        )
        kinds.setdefault(name.rsplit(".", 1)[-1], []).append(bar)
    return kinds


def highest(kinds: Mapping[str, Sequence[Bar]]) -> float:
    """The largest ratio in any chart, at least 1: all charts share it as their top."""
    bars = [bar for group in kinds.values() for bar in group]
    return max([1.0, *(bar.ratio for bar in bars), *(bar.sparsegpt or 0.0 for bar in bars)])


def layer_chart(kind: str, bars: Sequence[Bar], top_value: float) -> Markup:
    """A bar for each layer of one kind: its loss over NoWag-P's; a tick where SparseGPT ends."""
    left, right, top, bottom = 32.0, _WIDTH - 6, 8.0, _HEIGHT - 36
    up = Scale(0.0, top_value * 1.04, bottom, top)
    slot = (right - left) / len(bars)
    width = min(0.72 * slot, 26.0)
    parts = []
    for tick in up.ticks(5):
        parts += [
            line(left, up(tick), right, up(tick), "grid"),
            label(left - 5, up(tick), f"{tick:g}", "end", "tick"),
        ]
    every = max(1, -(-len(bars) // 8))
    for index, bar in enumerate(bars):
        middle = left + slot * (index + 0.5)
        tip = f"{bar.name}: relative proxy loss {bar.loss:.4g}, {bar.ratio:.3f} of NoWag-P's"
        parts.append(
            tag(
                "rect",
                tag("title", tip),
                x=middle - width / 2,
                y=up(bar.ratio),
                width=width,
                height=bottom - up(bar.ratio),
                class_="bar",
            )
        )
        if bar.sparsegpt is not None:
            y = up(bar.sparsegpt)
            parts.append(line(middle - slot * 0.45, y, middle + slot * 0.45, y, "mark"))
        if index % every == 0:
            parts.append(label(middle, bottom + 11, str(bar.depth), "middle", "tick"))
    parts.append(line(left, up(1.0), right, up(1.0), "reference"))
    parts.append(label((left + right) / 2, bottom + 28, "depth (block)", "middle", "axis"))
    mean = sum(bar.ratio for bar in bars) / len(bars)
    described = f"{len(bars)} layers by depth; mean {mean:.3f}, 1 is NoWag-P."
    title = f"{kind}: proxy loss over NoWag-P's"
    return picture(_WIDTH, _HEIGHT, title, described, *parts)
