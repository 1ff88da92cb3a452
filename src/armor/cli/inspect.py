"""``armor inspect``: what is inside a checkpoint, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armor.sparse.pattern import counted

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
    """Show every pruned layer of a checkpoint: block, overhead, bytes, loss, certificate.

    Checks the whole folder on the way: metadata, shapes, and that each group keeps what its
    pattern says.

    Example: [bold]armor inspect qwen-armor --json qwen.json[/bold]
    """
    from rich.console import Console

    from armor.checkpoint.inspect import inspect
    from armor.checkpoint.jsonfile import check_file, write_json

    check_file(json)
    found = inspect(folder)
    if json is not None:
        write_json(json, found)
    console = Console()
    console.print(_table(found))
    console.print()
    for line in _summary(found):
        console.print(line, highlight=False)


def _table(found: dict[str, Any]) -> Table:
    from rich.table import Table

    layers: dict[str, dict[str, Any]] = found["layers"]
    has_losses = any(layer["loss"] is not None for layer in layers.values())
    mixed = len({layer["pattern"] for layer in layers.values()}) > 1
    padding = (0, 1 if mixed else 2, 0, 0)  # names of 18 characters find their place
    table = Table(box=None, padding=padding, pad_edge=False, header_style="bold", show_footer=True)
    totals = found["totals"]
    elements = sum(layer["dense_bytes"] for layer in layers.values())
    wrappers = sum(layer["overhead"] * layer["dense_bytes"] for layer in layers.values())
    table.add_column("layer", f"all {totals['layers']}", overflow="fold")
    columns = [
        ("out × in", ""),
        *([("pattern", "")] if mixed else []),
        ("block", ""),
        ("over-\nhead", f"{wrappers / elements:.1%}" if wrappers else ""),
        ("bytes", size(totals["bytes"])),
    ]
    if has_losses:
        columns += [("loss", ""), ("loss /\nNoWag-P", _mean_ratio(layers))]
    columns += [("cert.", "")] if _certificates(layers) else []
    for title, footer in columns:
        table.add_column(title, footer, justify="right", no_wrap=True)
    prefix = _common_prefix(list(layers))
    for name, layer in layers.items():
        rows, cols = layer["shape"]
        cells = [
            name.removeprefix(prefix),
            f"{rows}×{cols}",
            *([layer["pattern"]] if mixed else []),
            str(layer["block"] or "-"),
            f"{layer['overhead']:.1%}" if layer["block"] else "-",
            size(layer["bytes"]),
        ]
        if has_losses:
            loss = layer["loss"]
            cells += ["-" if loss is None else f"{loss:.2g}", _against(layer)]
        cells += [_mark(_certificate(layer))] if _certificates(layers) else []
        table.add_row(*cells)
    return table


def _summary(found: dict[str, Any]) -> list[str]:
    totals, layers = found["totals"], found["layers"]
    method = found["method"] or "not recorded"
    lines = [
        f"{_patterns(layers)} (format {found['format']}, method {method})",
        f"pruned layers  {size(totals['bytes'])} of {size(totals['dense_bytes'])} dense:"
        f" {totals['ratio']:.3f}",
        f"whole model    {size(totals['model_bytes'])} of {size(totals['dense_model_bytes'])}"
        f" dense: {totals['model_bytes'] / totals['dense_model_bytes']:.3f}",
    ]
    if found["budget"] is not None:
        lines.append(_budget(found["budget"]))
    if certificates := _certificates(layers):
        lines.append(
            f"certified      {sum(certificates)} of {len(certificates)} layers:"
            " loss never rose, ends at or below baselines'"
        )
    errors = {name: layer["output_error"] or 0.0 for name, layer in layers.items()}
    if (total := sum(errors.values())) > 0:
        worst = sorted(errors, key=errors.__getitem__, reverse=True)[:2]
        prefix = _common_prefix(list(layers))
        shares = (f"{name.removeprefix(prefix)} ({errors[name] / total:.0%})" for name in worst)
        lines.append(f"output error   most in {' and '.join(shares)}")
    for note in dict.fromkeys(found["dense_layers"].values()):
        names = [name for name, why in found["dense_layers"].items() if why == note]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"left dense     {names[0]}{more}: {note}")
    return lines


def _patterns(layers: dict[str, dict[str, Any]]) -> str:
    """The patterns, and how they were checked."""
    each = [layer["pattern"] for layer in layers.values()]
    checked = ["checked in every group"] if any(":" in pattern for pattern in each) else []
    checked += ["entries counted"] if any("%" in pattern for pattern in each) else []
    if len(set(each)) == 1:
        return f"pattern        {each[0]}, {checked[0]}"
    return f"patterns       {counted(each)}\n               {', '.join(checked)}"


def _budget(budget: dict[str, Any]) -> str:
    """Size, and how many layers got which block for it."""
    counts = [f"{count} block {block}" for block, count in budget["blocks"].items()]
    counts += [f"{budget['dense']} dense"] if budget["dense"] else []
    chosen = f"; layers: {', '.join(counts)}" if counts else ""
    return f"size           {budget['reached']:.4f}, {budget['size']:g} asked for{chosen}"


def _certificate(layer: dict[str, Any]) -> bool | None:
    """None without wrappers: a baseline's loss is nobody's promise."""
    return None if layer["block"] is None else layer["certificate"]


def _certificates(layers: dict[str, dict[str, Any]]) -> list[bool]:
    """Those that there are."""
    found = map(_certificate, layers.values())
    return [certificate for certificate in found if certificate is not None]


def size(count: float) -> str:
    """Bytes with three significant digits or so, in kB, MB or GB."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95 or unit == "GB":
            break
    return f"{count:.2f} {unit}" if count < 9.995 else f"{count:.1f} {unit}"


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


def _mean_ratio(layers: dict[str, dict[str, Any]]) -> str:
    """The geometric mean of the losses over NoWag-P's."""
    from math import exp, log

    logs = [
        log(layer["loss"] / layer["nowag_loss"])
        for layer in layers.values()
        if layer["loss"] and layer["nowag_loss"]
    ]
    return f"{exp(sum(logs) / len(logs)):.3f}" if logs else ""


def _mark(value: bool | None) -> str:
    return "-" if value is None else ("yes" if value else "NO")
