"""write_report: rows and layer records in, one HTML file out."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.jsonfile import read_json, write_text
from armor.config import PruneConfig
from armor.report.charts import Point, drawable, method_chart, size_chart
from armor.report.layers import bars_by_kind, highest, layer_chart
from armor.report.numbers import percent, perplexity
from armor.report.settings import settings_tables
from armor.report.summary import best_row, summary

if TYPE_CHECKING:
    from armor.evaluate.compare import Row

LayerRecords = Mapping[str, Mapping[str, Any]]


def write_report(
    rows: Sequence[Row],
    path: Path,
    title: str,
    settings: Mapping[str, PruneConfig],
    layers: Mapping[str, LayerRecords] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the comparison as one HTML file that fetches nothing and runs no script.

    Args:
        rows: the dense model's row, then one for each label, as `compare` gives them.
        settings: what each label was pruned with.
        layers: for labels to be shown layer by layer, the records of their layers by name; see
            `layer_records`.
        notes: further facts to print beside the versions, such as the evaluation window.
    """
    texts = list(rows[0].perplexity)
    best = best_row(rows)
    environment = Environment(
        loader=PackageLoader("armor.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"perplexity": perplexity, "percent": percent}
    shared, differing = settings_tables(settings)
    page = environment.get_template("template.html").render(
        title=title,
        best=best,
        summary=summary(rows, best),
        texts=texts,
        rows=rows,
        labels=list(settings),
        figures=[_figures(rows, text) for text in texts],
        layers=[_layer_section(label, records) for label, records in (layers or {}).items()],
        shared=shared,
        differing=differing,
        facts={**(notes or {}), **_versions()},
    )
    write_text(path, page)


def layer_records(folder: Path, labels: Sequence[str]) -> dict[str, LayerRecords]:
    """The layer records of the checkpoints ``folder/label``, for the labels that have any."""
    found: dict[str, LayerRecords] = {}
    for label in labels:
        file = folder / label / RUN_FILE
        if file.is_file() and (layers := read_json(file).get("layers")):
            found[label] = layers
    return found


def _figures(rows: Sequence[Row], text: str) -> dict[str, Any]:
    points = [
        Point(
            row.label,
            row.method if row.method in ("dense", "armor") else "baseline",
            row.perplexity[text],
            row.linear_bytes / row.dense_linear_bytes,
        )
        for row in rows
    ]
    shown = drawable(points)
    return {
        "text": text,
        "charts": [method_chart(shown, text), size_chart(shown, text)] if shown else [],
        "left_out": [point.name for point in points if point not in shown],
    }


def _layer_section(label: str, records: LayerRecords) -> dict[str, Any]:
    kinds = bars_by_kind(records)
    top = highest(kinds)
    bars = [bar for group in kinds.values() for bar in group]
    return {
        "label": label,
        "charts": {kind: layer_chart(kind, group, top) for kind, group in kinds.items()},
        "bars": sorted(bars, key=lambda bar: list(records).index(bar.name)),
        "records": records,
        "has_sparsegpt": any(bar.sparsegpt is not None for bar in bars),
        "mean": sum(bar.ratio for bar in bars) / len(bars) if bars else None,
    }


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {
        "armor": version("armor-prune"),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
