"""``armor inspect``: what is inside a checkpoint, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armor.errors import ArmorError

if TYPE_CHECKING:
    from rich.table import Table


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="inspect")(inspect_command)


def inspect_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder armor prune wrote.")],
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything here as JSON, too.")
    ] = None,
) -> None:
    """Show every pruned layer of a checkpoint: block, size, loss, certificate.

    Checks the whole folder on the way: metadata, shapes, and that each group of 4 keeps exactly 2.

    Example: [bold]armor inspect qwen-armor --json qwen.json[/bold]
    """
    from rich.console import Console

    from armor.checkpoint.inspect import inspect
    from armor.checkpoint.jsonfile import write_json

    if json is not None and not json.absolute().parent.is_dir():
        raise ArmorError(f"cannot write {json}: its folder does not exist")
    found = inspect(folder)
    if json is not None:
        write_json(json, found)
    console = Console()
    console.print(_table(found["layers"]))
    for line in _summary(found):
        console.print(line, highlight=False)


def _table(layers: dict[str, dict[str, Any]]) -> Table:
    from rich.table import Table

    has_losses = any(layer["loss"] is not None for layer in layers.values())
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    for title in ("out × in", "block", "MB", "of\ndense"):
        table.add_column(title, justify="right", no_wrap=True)
    if has_losses:
        for title in ("loss", "loss /\nNoWag-P", "certi-\nfied"):
            table.add_column(title, justify="right", no_wrap=True)
    prefix = _common_prefix(list(layers))
    for name, layer in layers.items():
        rows, cols = layer["shape"]
        cells = [
            name.removeprefix(prefix),
            f"{rows}×{cols}",
            str(layer["block"] or "-"),
            f"{layer['bytes'] / 1e6:.2f}",
            f"{layer['ratio']:.3f}",
        ]
        if has_losses:
            cells += [_number(layer["loss"], ".3g"), _against(layer), _mark(layer["certificate"])]
        table.add_row(*cells)
    return table


def _summary(found: dict[str, Any]) -> list[str]:
    totals = found["totals"]
    lines = [
        f"{totals['layers']} layers, pattern {found['pattern']} checked in every group"
        f" (format {found['format']}, method {found['method'] or 'not recorded'})",
        f"pruned layers: {totals['bytes'] / 1e6:.2f} MB, dense"
        f" {totals['dense_bytes'] / 1e6:.2f} MB: {totals['ratio']:.3f} of dense",
        f"whole model:   {totals['model_bytes'] / 1e6:.2f} MB, dense"
        f" {totals['dense_model_bytes'] / 1e6:.2f} MB:"
        f" {totals['model_bytes'] / totals['dense_model_bytes']:.3f} of dense",
    ]
    if any(layer["certificate"] is not None for layer in found["layers"].values()):
        lines.append(
            f"certified:     {totals['certified']} of {totals['layers']} layers (the loss never"
            " rose and ends at or below the baselines')"
        )
    return lines


def _common_prefix(names: list[str]) -> str:
    """What all names begin with, up to a dot: ``model.layers.``."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return "".join(f"{part}." for part in parts[0][:shared])


def _against(layer: dict[str, Any]) -> str:
    if layer["loss"] is None or not layer["nowag_loss"]:
        return "-"
    return f"{layer['loss'] / layer['nowag_loss']:.3f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _mark(value: bool | None) -> str:
    return "-" if value is None else ("yes" if value else "NO")
