"""``armor report``: a pruned model or a comparison as a page and as plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="report")(report_command)


def report_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What armor prune, compare or demo wrote.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page (default: report.html in DIR).")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option("--eval", metavar="FILE", help="JSON of armor eval; may be repeated."),
    ] = None,
    bench: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="JSON of armor bench; may be repeated."),
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Write the plots as PNG, too (needs matplotlib).")
    ] = False,
) -> None:
    """Write report.html: quality, size, speed, and every layer; one file that fetches nothing.

    Files in DIR named eval*.json and bench*.json are shown, too. PNG files go into a folder beside
    the page.

    Example: [bold]armor report qwen-armor --eval eval.json --bench bench.json[/bold]
    """
    from armor.checkpoint.jsonfile import check_file
    from armor.report import collect, write_report

    report = collect(folder, evaluation or (), bench or ())
    page = out or folder
    if page.is_dir():
        page /= "report.html"
    check_file(page)
    plots = page.with_name(f"{page.stem}-plots") if png else None
    files = write_report(report, page, plots)
    print(f"wrote {page}" + (f" and {len(files)} plots in {plots}" if files else ""))
