"""Running a comparison with a live display, then its table and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from armor.cli.progress import LayerProgress, WindowProgress
from armor.cli.recording import recording
from armor.cli.table import comparison_notes, comparison_table
from armor.compare.checkpoints import DENSE
from armor.compare.compare import Windows, compare, decide_bos
from armor.compare.equal_bytes import SameBytes
from armor.compare.row import Row
from armor.config import PruneConfig
from armor.events import combine_progress
from armor.report import collect, name_comparison, write_report
from armor.run.describe import describe_config
from armor.run.prune import Progress
from armor.text.source import TextLike

#: The log of a comparison, in its folder.
EVENTS = "events.jsonl"


def show_comparison(
    model: str,
    settings: Mapping[str, PruneConfig | SameBytes],
    texts: Mapping[str, TextLike],
    out: Path,
    title: str,
    seq_len: int | None = None,
    max_chars: int | None = None,
    bos: str = "auto",
    log: str | None = None,
    tensorboard: Path | None = None,
    device: str = "cpu",
    on_row: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Run `compare`, print the table, write ``report.html`` and ``events.jsonl`` into `out`.

    Args:
        title: of the report. device: "cpu", "cuda" or "cuda:N".
        log, tensorboard: see `recording`. The others: see `compare`.
    """
    bos, settings = decide_bos(model, bos, settings)
    configs = {
        label: one.describe() if isinstance(one, SameBytes) else describe_config(one)
        for label, one in settings.items()
    }
    about = {"model": model, "configs": configs}
    with (
        recording("compare", out, out / EVENTS, log, tensorboard, **about) as recorder,
        ExitStack() as stack,
    ):
        fresh: list[str] = []  # not known from an earlier run

        def on_start(label: str) -> Progress:
            stack.close()  # the bar of the setting before
            fresh.append(label)
            recorder.emit("method_started", label=label)
            if label == DENSE:
                return Progress()
            display = stack.enter_context(LayerProgress(label))
            return combine_progress(display.callbacks(), recorder.progress(label))

        def on_text(label: str, text: str) -> Windows:
            stack.close()
            return stack.enter_context(WindowProgress(f"{label} on {text}")).step

        rows = compare(
            model,
            settings,
            texts,
            out,
            seq_len=seq_len,
            max_chars=max_chars,
            bos=bos,
            device=device,
            on_start=on_start,
            on_text=on_text,
            on_row=on_row,
        )
        for row in rows:
            for text, perplexity in row.perplexity.items() if row.label in fresh else ():
                recorder.emit("measured", label=row.label, text=text, perplexity=perplexity)
    console = Console(highlight=False)
    console.print(comparison_table(rows))
    console.print(f"[dim]{comparison_notes(rows, seq_len, bos)}[/dim]")
    name_comparison(out, title)
    report = out / "report.html"
    write_report(collect(out), report)
    console.print(f"wrote [bold]{report}[/bold]")
    return rows
