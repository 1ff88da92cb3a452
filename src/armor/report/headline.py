"""The numbers at the top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from armor.checkpoint.generalisation import TOO_LITTLE_TEXT
from armor.report.data import Report, Run
from armor.report.metrics import METRICS
from armor.report.numbers import duration, percent, perplexity, size
from armor.report.texts import measured_on
from armor.text.bos import bos_words

if TYPE_CHECKING:
    from armor.compare.row import Row


@dataclass(frozen=True)
class Tile:
    """A number, what it is, and what it compares with."""

    value: str
    name: str
    note: str = ""


def tiles(report: Report, best: Row | None, run: Run | None) -> list[Tile]:
    """Quality, size, loss, certificate, speed and time, of the best row or of the only run."""
    found: list[Tile] = []
    if best is not None:
        found += _quality(best, report)
    else:
        rows = [row for data in report.evals.values() for row in data.get("perplexity") or ()]
        found += [tile for row in rows[:2] for tile in _measured(row, report.calibration)]
    if run is not None:
        sizes = run.sizes
        packed = f"{size(sizes.packed)} of {size(sizes.dense)}, {run.patterns}"
        found.append(Tile(f"{sizes.packed / sizes.dense:.2f}×", "pruned layers, of dense", packed))
        whole, dense = sizes.packed + sizes.rest, sizes.dense + sizes.rest
        note = f"{size(whole)} of {size(dense)}"
        found.append(Tile(f"{whole / dense:.2f}×", "whole model, of dense", note))
        if run.mean_ratio is not None:
            note = "of NoWag-P's, geometric mean"
            found.append(Tile(f"{run.mean_ratio:.3f}×", "proxy loss", note))
        if run.generalisation is not None:
            few = run.generalisation > TOO_LITTLE_TEXT
            note = "more calibration text would help" if few else "1 where nothing is overfitted"
            found.append(Tile(f"{run.generalisation:.2f}×", "held-out error, of fitted", note))
        if (tuning := run.record.tuning) is not None:
            curve = tuning.curve
            note = f"before tuning {curve.before:.4f}, on held-out windows"
            found.append(Tile(f"{curve.after:.4f}", "nats from dense (KL)", note))
        good, asked = run.certified
        if asked:
            note = "at or below the baselines" + (", before tuning" if tuning is not None else "")
            found.append(Tile(f"{good} / {asked}", "layers certified", note))
    found += [tile for data in report.benches.values() for tile in _speed(data)][:1]
    if run is not None and run.record.seconds:
        memory = (
            f"at most {size(run.record.peak_memory)} of memory" if run.record.peak_memory else ""
        )
        found.append(Tile(duration(run.record.seconds), "to prune", memory))
    return found


def _quality(best: Row, report: Report) -> list[Tile]:
    text, value = next(iter(best.perplexity.items()))
    note = f"dense {perplexity(report.rows[0].perplexity[text])}"
    if (measured := measured_on(report.calibration, report.texts.get(text))) is not None:
        note += f", {measured}"
    found = [Tile(perplexity(value), f"perplexity, {text}", note)]
    if best.gap_left:
        left = max(best.gap_left.values())
        found.append(Tile(percent(left), "of the gap left", "best baseline to dense is 100 %"))
    return found


def _measured(row: Mapping[str, Any], calibration: Any) -> list[Tile]:
    """The chief figures of a text."""
    text = PurePath(row["source"]).stem
    note = f"windows of {row['seq_len']} tokens, {bos_words(row.get('bos', False))}"
    if (measured := measured_on(calibration, row["source"])) is not None:
        note += f", {measured}"
    return [
        Tile(metric.show(row[metric.key]), f"{metric.headline}, {text}", note)
        for metric in METRICS
        if metric.headline is not None and metric.key in row
    ]


def _speed(data: dict[str, Any]) -> list[Tile]:
    speeds = {row["contender"]: row for row in data.get("model") or ()}
    if not {"ARMOR", "dense"} <= set(speeds):
        return []
    ratio = speeds["ARMOR"]["decode"] / speeds["dense"]["decode"]
    note = f"{speeds['ARMOR']['decode']:,.0f} tokens/s, dense {speeds['dense']['decode']:,.0f}"
    return [Tile(f"{ratio:.2f}×", "decoding speed, of dense", note)]
