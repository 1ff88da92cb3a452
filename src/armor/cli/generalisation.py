"""What armor prune and armor inspect say of errors on held-out windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def generalisation_lines(ratio: float | None, config: Mapping[str, Any]) -> list[str]:
    """The ratio, and where it is large that more calibration text would help; in rich's markup.

    Args:
        ratio: see `armor.checkpoint.generalisation`; None says nothing. config: as recorded.
    """
    from armor.checkpoint.generalisation import TOO_LITTLE_TEXT, calibration_tokens

    if ratio is None:
        return []
    lines = [f"generalisation held-out error {ratio:.2f} times that on what was fitted"]
    if ratio > TOO_LITTLE_TEXT:
        tokens = calibration_tokens(config)
        more = "more calibration text" if tokens is None else f"more text than {tokens:,} tokens"
        lines.append(f"[yellow]warning[/yellow]        {more} would help: --samples, --seq-len")
    return lines
