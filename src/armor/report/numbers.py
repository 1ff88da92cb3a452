"""Numbers as the report prints them."""

from __future__ import annotations

import math


def perplexity(value: float) -> str:
    """Three decimals below 1,000; "∞" where the model is beyond measure."""
    if not math.isfinite(value):
        return "∞"
    return f"{value:.3f}" if value < 1000 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share in percent, with one decimal below 100 %; "–" where there is none."""
    if not math.isfinite(share):
        return "–"
    return f"{100 * share:.1f} %" if share < 0.9995 else f"{100 * share:,.0f} %"
