"""Numbers as the report prints them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from armor.checkpoint.loss_ratio import GeometricMean


def perplexity(value: float | None) -> str:
    """Three decimals below 1,000; "∞" where the model is beyond measure (None from JSON)."""
    if value is None or not math.isfinite(value):
        return "∞"
    return f"{value:.3f}" if value < 1000 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share in percent, with one decimal below 100 %; "–" where there is none."""
    if not math.isfinite(share):
        return "–"
    return f"{100 * share:.1f} %" if share < 0.9995 else f"{100 * share:,.0f} %"


def size(count: float) -> str:
    """Bytes in kB, MB or GB with three digits or so."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5 or unit == "GB":
            break
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:,.{digits}f} {unit}"


def duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def geometric_mean(values: Iterable[float]) -> float | None:
    """Of the positive ones among `values`; None where there is none."""
    return GeometricMean(values).value
