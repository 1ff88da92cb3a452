"""The figures of a report: a picture or small ones side by side, a caption, a file name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from armor.report.charts.axes import clip
from armor.report.charts.curves import curve_chart, height_scale, solves_by_kind
from armor.report.charts.errors import error_chart, error_scale, errors_by_kind
from armor.report.charts.layers import bars_by_kind, by_kind, highest, layer_chart
from armor.report.charts.methods import Point, drawable, method_chart, size_chart
from armor.report.charts.overhead import overhead_chart
from armor.report.charts.sensitivity import error_map, worst_layers
from armor.report.charts.sizes import size_breakdown
from armor.report.charts.speed import Cases, speed_chart
from armor.report.charts.tuning import tuning_chart
from armor.report.data import Report, Run
from armor.report.picture import Line, Picture, Rect, sheet

if TYPE_CHECKING:
    from armor.compare.row import Row


_NOWAG: dict[str, Rect | Line] = {"NoWag-P": Line(0, 0, 18, 0, "reference")}


@dataclass(frozen=True)
class Figure:
    """`panels` are shown side by side on the page; `picture` is them all, for a file `name`.png."""

    name: str
    caption: str
    picture: Picture
    panels: tuple[tuple[str, Picture], ...] = ()


@dataclass(frozen=True)
class RunFigures:
    """The figures of one checkpoint; None where its record has nothing to draw."""

    losses: Figure | None
    errors: Figure | None
    curves: Figure | None
    unit: str
    sensitivity: tuple[Figure, ...]
    overhead: Figure | None
    tuning: Figure | None

    def all(self) -> list[Figure]:
        """Those that there are, in order."""
        first = (self.tuning, self.losses, self.errors, self.curves)
        found = (*first, *self.sensitivity, self.overhead)
        return [figure for figure in found if figure is not None]


def text_figures(rows: Sequence[Row], text: str) -> tuple[list[Figure], list[str]]:
    """Perplexity by method and against size; and the methods that have no finite one."""
    points = [
        Point(
            clip(row.label),
            row.method if row.method in ("dense", "armor") else "baseline",
            row.perplexity[text],
            row.linear_bytes / (row.dense_linear_bytes or 1),
        )
        for row in rows
    ]
    shown = drawable(points)
    left_out = [point.name for point in points if point not in shown]
    if not shown:
        return [], left_out
    stem = _slug(text)
    return [
        Figure(f"perplexity-{stem}", "By method (lower is better)", method_chart(shown, text)),
        Figure(
            f"perplexity-size-{stem}",
            "Against size (lower left is better)",
            size_chart(shown, text),
        ),
    ], left_out


def size_figure(report: Report) -> Figure:
    """Where the bytes are, for every checkpoint."""
    picture = size_breakdown({clip(label): run.sizes for label, run in report.runs.items()})
    return Figure("size", "Dense and pruned, part by part", picture)


def speed_figure(found: Cases, name: str) -> Figure:
    """Speed against dense."""
    return Figure(f"speed-{_slug(PurePath(name).stem)}", "Speed against dense", speed_chart(found))


def run_figures(run: Run) -> RunFigures:
    """Losses, errors, curves, sensitivity and overhead of one checkpoint."""
    stem = _slug(run.label)
    kinds = bars_by_kind(run.layers)
    losses = curves = overhead = None
    if kinds:
        top = highest(kinds)
        panels = tuple((kind, layer_chart(kind, bars, top)) for kind, bars in kinds.items())
        marks: dict[str, Rect | Line] = {run.label: Rect(0, -6, 12, 12, "bar"), **_NOWAG}
        if any(bar.sparsegpt is not None for bars in kinds.values() for bar in bars):
            marks["SparseGPT"] = Line(0, 0, 18, 0, "mark")
        caption = f"{run.label}: proxy loss over NoWag-P's"
        losses = Figure(f"loss-{stem}", caption, sheet(caption, panels, marks), panels)
    solves, unit = solves_by_kind(run.layers)
    if solves:
        up = height_scale(solves)
        totals = by_kind(run.layers)
        panels = tuple(
            (kind, curve_chart(kind, group, len(totals[kind]), up, unit))
            for kind, group in solves.items()
        )
        caption = f"{run.label}: loss over NoWag-P's against {unit}"
        marks = {"one layer": Line(0, 0, 18, 0, "curve"), **_NOWAG}
        curves = Figure(f"loss-time-{stem}", caption, sheet(caption, panels, marks), panels)
    sensitivity: tuple[Figure, ...] = ()
    if run.total_error:
        sensitivity = (
            Figure(f"error-map-{stem}", "By kind and depth", error_map(run)),
            Figure(f"error-layers-{stem}", "The largest shares", worst_layers(run)),
        )
    if any(layer.spec.block for layer in run.layers):
        budget = run.record.config.get("overhead_budget") if run.has_block_budget else None
        picture = overhead_chart(run.layers, budget if isinstance(budget, float) else None)
        overhead = Figure(f"overhead-{stem}", "Wrappers by kind of layer", picture)
    tuning = None
    if (tuned := run.record.tuning) is not None:
        caption = f"{run.label}: held-out and trained windows"
        tuning = Figure(f"tuning-{stem}", caption, tuning_chart(tuned.curve))
    return RunFigures(losses, _errors(run, stem), curves, unit, sensitivity, overhead, tuning)


def _errors(run: Run, stem: str) -> Figure | None:
    """Errors on fitted and on held-out tokens, where the run has recorded them."""
    kinds = errors_by_kind(run.layers)
    if not kinds:
        return None
    up = error_scale(kinds)
    panels = tuple((kind, error_chart(kind, errors, up)) for kind, errors in kinds.items())
    marks: dict[str, Rect | Line] = {
        "held-out": Line(0, 0, 18, 0, "curve"),
        "fitted": Line(0, 0, 18, 0, "curve-fitted"),
    }
    caption = f"{run.label}: error by depth, fitted and held-out"
    return Figure(f"error-depth-{stem}", caption, sheet(caption, panels, marks), panels)


def _slug(text: str) -> str:
    """`text` as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.").lower() or "x"
