"""Tuning: the divergence from the dense model by steps, on held-out and on trained windows."""

from __future__ import annotations

from armor.checkpoint.tuning import Curve as Record
from armor.report.charts.axes import WIDTH, across, axis_title, upwards
from armor.report.picture import Curve, Dot, Mark, Picture
from armor.report.scale import Scale, fit

_HEIGHT = 220.0


def tuning_chart(record: Record) -> Picture:
    """A dot for each judgement of the held-out windows, the one that is stored filled."""
    left, right, top, bottom = 56.0, WIDTH - 14, 10.0, _HEIGHT - 46
    last = max(record.held_out)
    wide = Scale(0.0, last * 1.03 or 1.0, left, right)
    values = [value for value in (*record.held_out.values(), *record.trained.values()) if value > 0]
    up = fit(values or [1.0], bottom, top)
    marks: list[Mark] = [*across(wide, top, bottom, "steps", 6), *upwards(up, left, right, 6)]
    for points, style in ((record.trained, "curve-fitted"), (record.held_out, "curve")):
        line = tuple((wide(step), up(value)) for step, value in sorted(points.items()) if value > 0)
        marks += [Curve(line, style)] if len(line) > 1 else []
    for step, value in sorted(record.held_out.items()):
        if value > 0:
            tip = f"after {step} steps: {value:.4f} nats a token on held-out windows"
            style = "dot-armor" if step == record.best else "dot"
            marks.append(Dot(wide(step), up(value), 4, style, tip))
    described = (
        f"Held-out divergence {record.before:.4f} before tuning and {record.after:.4f} after"
        f" {record.best} of {last} steps, which is what is stored."
    )
    title = axis_title("KL from the dense model, nats a token", up)
    return Picture(WIDTH, _HEIGHT, f"Tuning: {title}", described, tuple(marks))
