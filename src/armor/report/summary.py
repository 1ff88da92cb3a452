"""The comparison, or the run, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from armor.report.data import Run
from armor.report.numbers import perplexity
from armor.sparse.pattern import counted

if TYPE_CHECKING:
    from armor.compare.row import Row


def best_row(rows: Sequence[Row]) -> Row | None:
    """The pruned row of the lowest mean log-perplexity; None where nothing was pruned."""
    pruned = [row for row in rows if row.method != "dense"]
    return min(pruned, key=_mean_log, default=None)


def summary(rows: Sequence[Row], best: Row | None) -> str:
    """What the best method keeps, at what size, against the dense model and the best other one."""
    dense = next((row for row in rows if row.method == "dense"), None)
    if best is None or dense is None:
        return ""
    text = next(iter(best.perplexity))
    sentence = (
        f"{best.label} reaches perplexity {perplexity(best.perplexity[text])} on {text} "
        f"(dense {perplexity(dense.perplexity[text])}) with the pruned layers at {_share(best)} "
        "of their dense bytes"
    )
    is_armor = best.method == "armor"
    others = [row for row in rows if row is not dense and (row.method == "armor") != is_armor]
    if others:
        other = min(others, key=lambda row: row.perplexity[text])
        which = "the best method without wrappers, " if is_armor else ""
        sentence += (
            f"; {which}{other.label}{',' if which else ''} has "
            f"{perplexity(other.perplexity[text])} at {_share(other)}"
        )
    return sentence + "."


def summary_of_run(run: Run | None) -> str:
    """What a single checkpoint keeps and at what size."""
    if run is None:
        return ""
    sizes, (good, asked) = run.sizes, run.certified
    patterns = {str(layer.spec.pattern) for layer in run.layers}
    which = (
        f" ({counted(str(layer.spec.pattern) for layer in run.layers)})"
        if len(patterns) > 1
        else ""
    )
    sentence = (
        f"{len(run.layers)} layers pruned to {run.patterns}{which} by {run.method}, at "
        f"{sizes.packed / sizes.dense:.2f} of their dense bytes"
    )
    if run.mean_ratio is not None:
        sentence += f"; their proxy loss is {run.mean_ratio:.3f} of NoWag-P's (geometric mean)"
    if asked:
        sentence += f", and {'all' if good == asked else f'{good} of {asked}'} are certified"
    if run.record.tuning is not None:
        sentence += "; they were tuned afterwards, which these figures of layers do not show"
    return sentence + "."


def _share(row: Row) -> str:
    return f"{row.linear_bytes / row.dense_linear_bytes:.2f}"


def _mean_log(row: Row) -> float:
    values = row.perplexity.values()
    return sum(math.log(value) for value in values) / len(values)
