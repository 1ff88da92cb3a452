"""The figures of a text that a report shows: one line each, from the JSON of ``armor eval``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from armor.checkpoint.jsonfile import number
from armor.report.numbers import percent, perplexity


@dataclass(frozen=True)
class Metric:
    """A figure in the rows of the list "perplexity", which has one row for each text.

    Attributes:
        key: in the row. title: of its column.
        show: the value as it is printed; None stands for infinity.
        interval: the key of its 95 % interval, if it has one. digits: of half the interval.
        headline: its name among the numbers at the top; None to leave it out.
        required: whether every row has it.
    """

    key: str
    title: str
    show: Callable[[float | None], str]
    interval: str | None = None
    digits: int = 3
    headline: str | None = None
    required: bool = False

    def half_width(self, row: Mapping[str, Any]) -> str:
        """Half of the 95 % interval; "–" where a row has none, or one without an end."""
        low, high = row.get(self.interval or "") or (None, None)
        return "–" if low is None or high is None else f"{(high - low) / 2:.{self.digits}f}"


def figure(value: float | None, digits: int) -> str:
    """So many decimals below 1,000; "∞" for None."""
    if value is None or not math.isfinite(value):
        return "∞"
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


#: In the order of the columns. A new metric of `armor eval` is shown by a line here.
METRICS = [
    Metric("perplexity", "perplexity", perplexity, "ci95", headline="perplexity", required=True),
    Metric("bits_per_byte", "bits/byte", partial(figure, digits=4), required=True),
    Metric("kl", "KL, nats/token", partial(figure, digits=4), "kl_ci95", 4, "KL divergence"),
    Metric("same_top1", "same top token", lambda share: percent(share or 0.0)),
]


def metrics_of(rows: list[Mapping[str, Any]]) -> list[Metric]:
    """Those that any of `rows` has."""
    return [metric for metric in METRICS if any(metric.key in row for row in rows)]


def is_figure(value: Any) -> bool:
    """Whether a file's value can be shown: a finite number, or null for infinity."""
    return value is None or number(value) is not None


def is_interval(value: Any) -> bool:
    """Whether a file's value is an interval: null, or two figures."""
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(map(is_figure, value))
    )
