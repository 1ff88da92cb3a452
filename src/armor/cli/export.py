"""``armor export``: the dense twin of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="export")(export)


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder armor prune wrote.")],
    out: Annotated[Path, typer.Option(metavar="DENSE_DIR", help="The new folder.")],
) -> None:
    """Multiply a pruned model out into a plain checkpoint that any server loads.

    It has the quality of the pruned model and the size and speed of the dense one; nothing in the
    folder needs armor.

    Example: [bold]armor export qwen-armor --out qwen-dense[/bold]
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from armor.checkpoint.export import export_dense

    console = Console(stderr=True)
    columns = ("Multiplying out", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        export_dense(
            folder, out, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(f"Wrote {out}, a dense model without a trace of armor.")
