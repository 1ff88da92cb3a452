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
    """One line a method: perplexity and KL on each text, bytes of the pruned linears, seconds."""
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    table.add_column("method", no_wrap=True)
    texts = list(rows[0].perplexity)
    for figure in ("perplexity", "KL"):
        for name in texts:
            title = figure if len(texts) == 1 else f"{figure}\n{name}"
            width = 10 if figure == "perplexity" else 6
            table.add_column(title, justify="right", overflow="fold", min_width=width)
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
            *(f"{row.kl[name]:.4f}" if row.kl else "-" for name in texts),
            "-" if gap is None else f"{gap:.1%}",
            f"{row.linear_bytes / 1e6:.2f} MB{'*' if row.stored_dense else ''}",
            f"{row.linear_bytes / row.dense_linear_bytes:.3f}",
            f"{row.seconds:.1f}" if row.seconds else "-",
            style="bold green" if best else "",
        )
    return table


def comparison_notes(rows: Sequence[Row], seq_len: int | None, bos: str) -> str:
    """What stands below a comparison's table; `bos` is "always" or "never"."""
    window = f"{seq_len} tokens" if seq_len else "the context, at most 2048 tokens"
    notes = [
        f"perplexity: windows of {window}, {bos_words(bos == 'always')};",
        "KL: how far the predictions are from the dense model's, nats a token;",
        "gap left: what remains of the best baseline's gap to dense (worst text);",
    ]
    if any(row.rival for row in rows):
        notes.append("the baselines for it are those with a sparse core and nothing else;")
    notes.append("linears: bytes of the decoder's linear layers as stored")
    if any(row.stored_dense for row in rows):
        notes.append("* in a compact form, which armor does not write: the file is stored dense")
    return "\n".join(notes)
