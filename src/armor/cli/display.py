"""Running a comparison with a live display, then its table and report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from armor.calibrate.sources import Source
from armor.cli.progress import LayerProgress
from armor.cli.table import GAP_NOTE, comparison_table
from armor.config import PruneConfig
from armor.evaluate.compare import DENSE, Row, compare
from armor.report import layer_records, write_report
from armor.run.prune import Progress


def show_comparison(
    model: str,
    settings: Mapping[str, PruneConfig],
    texts: Mapping[str, Source],
    out: Path,
    title: str,
    seq_len: int | None = None,
    max_chars: int | None = None,
) -> list[Row]:
    """Run `compare`, print the table, write ``report.html`` into `out`."""
    with ExitStack() as stack:

        def on_start(label: str) -> Progress:
            stack.close()  # the bar of the setting before
            if label == DENSE:
                return Progress()
            return stack.enter_context(LayerProgress(label)).callbacks()

        rows = compare(
            model, settings, texts, out, seq_len=seq_len, max_chars=max_chars, on_start=on_start
        )
    console = Console(highlight=False)
    console.print(comparison_table(rows))
    console.print(f"[dim]{GAP_NOTE}[/dim]")
    report = out / "report.html"
    write_report(rows, report, title, settings, layer_records(out, _armor(settings)))
    console.print(f"wrote [bold]{report}[/bold]")
    return rows


def _armor(settings: Mapping[str, PruneConfig]) -> list[str]:
    return [label for label, config in settings.items() if config.method == "armor"]
