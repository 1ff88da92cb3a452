"""The tables that commands print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from armor.text.bos import bos_words

if TYPE_CHECKING:
    from armor.compare.row import Row


def perplexity_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a text, from `PerplexityResult.to_dict` (a JSON file has null for infinite)."""
    table = _empty("text", "perplexity", "±95 %", "bits/byte", "window", "tokens")
    for row in rows:
        value = math.inf if row["perplexity"] is None else row["perplexity"]
        low, high = row["ci95"] or (None, None)
        table.add_row(
            Path(row["source"]).name,
            f"{value:.4f}",
            "-" if low is None or high is None else f"{(high - low) / 2:.3f}",
            f"{row['bits_per_byte']:.4f}",
            f"{row['seq_len']} {bos_words(bool(row.get('bos')))}",
            f"{row['tokens']:,}",
        )
    return table


def divergence_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a text, from `Divergence.to_dict`, all against one reference."""
    first = f"against {Path(rows[0]['reference']).name}"
    table = _empty(first, "KL, nats/token", "±95 %", "same top token")
    for row in rows:
        value = math.inf if row["kl"] is None else row["kl"]
        low, high = row["kl_ci95"] or (None, None)
        table.add_row(
            Path(row["source"]).name,
            f"{value:.5f}",
            "-" if low is None or high is None else f"{(high - low) / 2:.5f}",
            f"{row['same_top1']:.2%}",
        )
    return table


def task_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a task, from `TaskResult.to_dict`; the headline value with its standard error."""
    table = _empty("task", "shots", "metric", "value", "±1 s.e.", "documents", "seconds")
    for row in rows:
        table.add_row(
            row["task"],
            str(row["shots"]),
            row["metric"],
            f"{row['value']:.4f}",
            "-" if row["stderr"] is None else f"{row['stderr']:.4f}",
            f"{row['samples']:,}",
            f"{row['seconds']:.1f}",
        )
    return table


def _empty(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def comparison_table(rows: Sequence[Row]) -> Table:
    """One line a method: perplexity on each text, bytes of the pruned linears, seconds."""
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("method", no_wrap=True)
    texts = list(rows[0].perplexity)
    for name in texts:
        title = "perplexity" if len(texts) == 1 else f"perplexity\n{name}"
        table.add_column(title, justify="right", overflow="fold", min_width=10)
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


def comparison_note(seq_len: int | None, bos: str) -> str:
    """What stands below `comparison_table`; `bos` is "always" or "never"."""
    window = f"{seq_len} tokens" if seq_len else "the context, at most 2048 tokens"
    return (
        f"perplexity: windows of {window}, {bos_words(bos == 'always')};\n"
        "gap left: share of the best baseline's perplexity gap to dense that remains"
        " (worst text);\n"
        "linears: bytes of the decoder's linear layers as stored"
    )
