"""write_report: a report in, report.html and PNG twins of its figures out."""

from __future__ import annotations

from pathlib import Path

from armor.checkpoint.jsonfile import write_text
from armor.errors import ArmorError
from armor.report.data import Report
from armor.report.page import render
from armor.report.png import require_matplotlib, write_png


def write_report(report: Report, page: Path, plots: Path | None = None) -> list[Path]:
    """Write one HTML file, and each figure as PNG into the folder `plots` if one is given.

    Returns:
        The PNG files.

    Raises:
        ArmorError: a place that cannot be written; PNG files asked for without matplotlib.
    """
    if plots is not None:
        require_matplotlib()
    html, figures = render(report)
    files: list[Path] = []
    try:
        write_text(page, html)
        if plots is not None:
            plots.mkdir(exist_ok=True)
            for figure in figures:
                files.append(plots / f"{figure.name}.png")
                write_png(figure.picture, files[-1])
    except OSError as error:
        raise ArmorError(f"cannot write {error.filename or page}: {error.strerror}") from None
    return files
