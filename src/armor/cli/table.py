"""The comparison table of `armor compare` and `armor demo`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from armor.evaluate.compare import Row


def comparison_table(rows: Sequence[Row]) -> Table:
    """One line a method: perplexity on each text, bytes of the pruned linears, seconds."""
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("method")
    texts = list(rows[0].perplexity)
    for name in texts:
        title = "perplexity" if len(texts) == 1 else f"perplexity\n{name}"
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("gap left", "linears", "of dense", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        best = row.method == "armor" and all(
            row.perplexity[name] <= min(other.perplexity[name] for other in rows[1:])
            for name in texts
        )
        gap = max(row.gap_left.values()) if row.gap_left else None
        table.add_row(
            row.label,
            *(f"{row.perplexity[name]:.3f}" for name in texts),
            "-" if gap is None else f"{gap:.1%}",
            f"{row.linear_bytes / 1e6:.2f} MB",
            f"{row.linear_bytes / row.dense_linear_bytes:.3f}",
            f"{row.seconds:.1f}" if row.seconds else "-",
            style="bold green" if best else "",
        )
    return table


GAP_NOTE = (
    "gap left: share of the best baseline's perplexity gap to dense that remains (worst text);\n"
    "linears: bytes of the decoder's linear layers as stored"
)
