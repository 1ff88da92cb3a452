"""render: a report as one HTML page, and the figures that are in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from armor.report import numbers
from armor.report.blocks import Blocks
from armor.report.charts.axes import clip
from armor.report.charts.speed import CONTENDERS, cases, speedup
from armor.report.data import Layer, Report, Run
from armor.report.figures import Figure, run_figures, size_figure, speed_figure, text_figures
from armor.report.headline import tiles
from armor.report.metrics import figure, metrics_of
from armor.report.settings import settings_tables
from armor.report.style import css
from armor.report.summary import best_row, summary, summary_of_run
from armor.report.svg import to_svg
from armor.report.texts import measured_on
from armor.text.bos import bos_words

#: Rows of a table of layers; of more layers, those with the largest error.
MOST_ROWS = 400


def render(report: Report) -> tuple[str, list[Figure]]:
    """The page, which fetches nothing and runs no script, and its figures in order."""
    best = best_row(report.rows) if report.rows else None
    chief = _chief(report, best.label if best else None)
    texts = []
    figures: list[Figure] = []
    for text in report.rows[0].perplexity if report.rows else ():
        drawn, left_out = text_figures(report.rows, text)
        measured = measured_on(report.calibration, report.texts.get(text))
        texts.append({"text": text, "figures": drawn, "left_out": left_out, "on": measured})
        figures += drawn
    sizes = size_figure(report) if report.runs else None
    evaluations = [
        _evaluation(name, data, report.calibration) for name, data in report.evals.items()
    ]
    benches = [_bench(name, data) for name, data in report.benches.items()]
    runs = [_run(run, run is chief) for run in _shown(report, chief)]
    shared, differing = settings_tables(
        {label: run.record.config for label, run in report.runs.items()}
    )
    page = (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            title=f"{report.title}, {chief.patterns}" if chief else report.title,
            css=Markup(css()),
            best=best,
            has_kl=any(row.kl for row in report.rows),
            summary=summary(report.rows, best) if report.rows else summary_of_run(chief),
            tiles=tiles(report, best, chief),
            texts=texts,
            evaluations=evaluations,
            sizes=sizes,
            benches=benches,
            runs=runs,
            shared=shared,
            differing=differing,
            facts=_facts(report, chief),
        )
    )
    figures += [sizes] if sizes else []
    figures += [bench["figure"] for bench in benches if bench["figure"]]
    return page, figures + [figure for run in runs for figure in run["figures"].all()]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("armor.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "perplexity": numbers.perplexity,
        "kl": partial(figure, digits=4),
        "percent": numbers.percent,
        "size": numbers.size,
        "duration": numbers.duration,
        "clip": clip,
        "svg": to_svg,
        "basename": lambda path: PurePath(path).name,
    }
    return environment


def _chief(report: Report, best: str | None) -> Run | None:
    """The run that the headline is about: the best row's, else the first."""
    if best in report.runs:
        return report.runs[best]
    return next(iter(report.runs.values()), None) if not report.rows else None


def _shown(report: Report, chief: Run | None) -> list[Run]:
    """The runs shown layer by layer: the chief one, then ARMOR's others."""
    others = [run for run in report.runs.values() if run.method == "armor" and run is not chief]
    return ([chief] if chief is not None else []) + others


def _run(run: Run, first: bool) -> dict[str, Any]:
    layers = run.layers
    if len(layers) > MOST_ROWS:
        layers = sorted(layers, key=_importance, reverse=True)
    return {
        "run": run,
        "first": first,
        "figures": run_figures(run),
        "layers": layers[:MOST_ROWS],
        "has": {
            "sparsegpt": any(layer.record.sparsegpt_loss is not None for layer in layers),
            "loss": any(layer.record.loss is not None for layer in layers),
            "share": run.total_error > 0,
            "errors": any(layer.record.held_out_error is not None for layer in layers),
            "certificate": run.certified[1] > 0,
            "patterns": len({layer.spec.pattern for layer in layers}) > 1,
        },
        "blocks": run.record.size and Blocks.of(run.record.size),
        "dense": _by_note(run.record.dense_layers),
    }


def _importance(layer: Layer) -> float:
    """A table that would be too long shows the layers where this is largest."""
    return layer.record.output_error or layer.record.loss or 0.0


def _by_note(dense: Mapping[str, str]) -> dict[str, list[str]]:
    notes: dict[str, list[str]] = {}
    for name, note in dense.items():
        notes.setdefault(note, []).append(name)
    return notes


def _evaluation(name: str, data: dict[str, Any], calibration: Any) -> dict[str, Any]:
    rows = data.get("perplexity") or []
    return {
        "name": name,
        "data": data,
        "metrics": metrics_of(rows),
        "rows": rows,
        "bos": [bos_words(row.get("bos", False)) for row in rows],
        "on": [measured_on(calibration, row["source"]) for row in rows],
        "references": dict.fromkeys(row["reference"] for row in rows if "reference" in row),
    }


def _bench(name: str, data: dict[str, Any]) -> dict[str, Any]:
    found = cases(data.get("layers") or ())
    return {
        "name": name,
        "data": data,
        "machine": data.get("machine") or {},
        "contenders": CONTENDERS,
        "figure": speed_figure(found, name) if found else None,
        "cases": [
            {"layer": layer, "batch": batch, "rows": case, "speedup": speedup(case, "ARMOR")}
            for (layer, batch), case in found.items()
        ],
    }


def _facts(report: Report, chief: Run | None) -> dict[str, str]:
    versions: dict[str, str] = {}
    for run in report.runs.values() if chief is None else [chief, *report.runs.values()]:
        record = run.record
        facts = {"model": record.model} if record.model is not None else {}
        facts |= {f"machine {name}": value for name, value in record.machine.items()}
        versions = {**record.versions, **facts, **versions}
    return {**report.notes, **versions}
