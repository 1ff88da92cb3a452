"""``armor demo``: every method on a small model that comes with armor, offline, in two minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="demo")(demo_command)


def demo_command(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Checkpoints, results and report.")
    ] = Path("demo-output"),
) -> None:
    """Prune a small bundled Llama with every method; prints a table, writes report.html.

    Needs no network. Example: [bold]armor demo[/bold]
    """
    from armor.cli.display import show_comparison
    from armor.compare.labels import default_labels
    from armor.config import PruneConfig
    from armor.demo.text import calibration_text, evaluation_text, model_dir

    calibration = (calibration_text(),)
    settings = {
        label: PruneConfig(**changes, calibration=calibration, block_size=16, seq_len=256)
        for label, changes in default_labels().items()
    }
    texts = {"held-out text": [evaluation_text()]}
    title = "armor demo: a Llama trained on Python's docs"
    # On the CPU: so small a model gains nothing from a GPU, and every machine prints one table.
    show_comparison(str(model_dir()), settings, texts, out, title, seq_len=256)
