"""``armor inspect``: what is inside a checkpoint, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armor.cli.generalisation import generalisation_lines
from armor.cli.options import Json
from armor.sparse.pattern import counted

if TYPE_CHECKING:
    from rich.table import Table

    from armor.checkpoint.inspect import InspectedLayer, Inspection
    from armor.checkpoint.records import SizeRecord
    from armor.vllm.degrees import Degree


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="inspect")(inspect_command)


def inspect_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder armor prune wrote.")],
    json: Json = None,
    tensor_parallel: Annotated[
        bool,
        typer.Option(
            "--tensor-parallel",
            help="Say among how many processes vLLM can split the model, and at what cost.",
        ),
    ] = False,
) -> None:
    """Show every pruned layer of a checkpoint: block, overhead, bytes, loss, errors, certificate.

    Checks the whole folder on the way: metadata, shapes, and that each group keeps what its
    pattern says.

    Example: [bold]armor inspect qwen-armor --json qwen.json[/bold]
    """
    from rich.console import Console

    from armor.checkpoint.inspect import Inspection
    from armor.checkpoint.jsonfile import check_file, write_json
    from armor.checkpoint.reader import Checkpoint
    from armor.vllm.degrees import degrees

    check_file(json)
    found = Inspection.of(folder)
    split = degrees(Checkpoint.open(folder)) if tensor_parallel else []
    if json is not None:
        described = {str(degree.count): degree.to_dict() for degree in split}
        write_json(json, found.to_dict() | ({"tensor_parallel": described} if split else {}))
    console = Console()
    console.print(_table(found))
    console.print()
    for line in (*_summary(found), *map(_degree_line, split)):
        console.print(line, highlight=False)


def _table(found: Inspection) -> Table:
    from rich.table import Table

    from armor.checkpoint.loss_ratio import loss_ratio, mean_loss_ratio

    layers = found.layers
    has_losses = any(layer.record.loss is not None for layer in layers.values())
    has_errors = any(layer.record.held_out_error is not None for layer in layers.values())
    has_certificates = bool(_certificates(layers))
    mixed = len({layer.spec.pattern for layer in layers.values()}) > 1
    padding = (0, 1 if mixed or has_errors else 2, 0, 0)  # names of 18 characters fit
    table = Table(box=None, padding=padding, pad_edge=False, header_style="bold", show_footer=True)
    wrappers = sum(layer.size.wrappers for layer in layers.values())
    table.add_column("layer", f"all {len(layers)}", overflow="fold")
    columns = [
        ("out × in", ""),
        *([("pat-\ntern", "")] if mixed else []),
        ("block", ""),
        ("over-\nhead", f"{wrappers / found.dense_bytes:.1%}" if wrappers else ""),
        ("bytes", size(found.packed_bytes)),
    ]
    if has_losses:
        mean = mean_loss_ratio(layer.record for layer in layers.values())
        columns += [] if has_errors else [("loss", "")]
        columns += [("loss /\nNoWag-P", "" if mean is None else f"{mean:.3f}")]
    columns += [("fitted\nerror", ""), ("held-\nout", "")] if has_errors else []
    columns += [("cert.", "")] if has_certificates else []
    for title, footer in columns:
        table.add_column(title, footer, justify="right", no_wrap=True)
    prefix = _common_prefix(list(layers))
    for name, layer in layers.items():
        rows, cols = layer.spec.shape
        cells = [
            name.removeprefix(prefix),
            f"{rows}×{cols}",
            *([str(layer.spec.pattern)] if mixed else []),
            str(layer.spec.block or "-"),
            f"{layer.size.overhead:.1%}" if layer.spec.block else "-",
            size(layer.size.packed),
        ]
        if has_losses:
            loss, ratio = layer.record.loss, loss_ratio(layer.record)
            if not has_errors:  # which take its place
                cells.append("-" if loss is None else f"{loss:.2g}")
            cells.append("-" if ratio is None else f"{ratio:.3f}")
        if has_errors:
            cells += [_share(layer.record.fitted_error), _share(layer.record.held_out_error)]
        if has_certificates:
            cells.append({None: "-", True: "yes", False: "NO"}[layer.certificate])
        table.add_row(*cells)
    return table


def _summary(found: Inspection) -> list[str]:
    from armor.checkpoint.format import FORMAT

    layers, run = found.layers, found.run
    packed, dense = found.packed_bytes, found.dense_bytes
    model, dense_model = found.model_bytes, found.dense_model_bytes
    lines = [
        f"{_patterns(layers)} (format {FORMAT}, method {run.method or 'not recorded'})",
        f"pruned layers  {size(packed)} of {size(dense)} dense: {packed / dense:.3f}",
        f"whole model    {size(model)} of {size(dense_model)} dense: {model / dense_model:.3f}",
    ]
    if run.size is not None:
        lines.append(_size_line(run.size))
    if (tuning := run.tuning) is not None:
        curve = tuning.curve
        lines.append(
            f"tuned          divergence from dense on held-out windows {curve.before:.4f} ->"
            f" {curve.after:.4f} nats a token ({tuning.kind}; figures of layers are from before)"
        )
    if certificates := _certificates(layers):
        lines.append(
            f"certified      {sum(certificates)} of {len(certificates)} layers"
            f"{'' if tuning is None else ' before tuning'}:"
            " loss never rose, ends at or below baselines'"
        )
    lines += generalisation_lines(found.generalisation, run.config)
    errors = {name: layer.record.output_error or 0.0 for name, layer in layers.items()}
    if (total := sum(errors.values())) > 0:
        worst = sorted(errors, key=errors.__getitem__, reverse=True)[:2]
        prefix = _common_prefix(list(layers))
        shares = (f"{name.removeprefix(prefix)} ({errors[name] / total:.0%})" for name in worst)
        lines.append(f"output error   most in {' and '.join(shares)}")
    for note in dict.fromkeys(run.dense_layers.values()):
        names = [name for name, why in run.dense_layers.items() if why == note]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"left dense     {names[0]}{more}: {note}")
    return lines


def _degree_line(degree: Degree) -> str:
    """Whether vLLM can split the model so, and what a process then holds."""
    begin = f"{'split in ' + str(degree.count):15}"
    if degree.reason:
        return f"{begin}no: {degree.reason}"
    return (
        f"{begin}{size(degree.bytes)} a process, {degree.surplus / degree.bytes:.1%} of it surplus"
        f" (blocks cut in {degree.cut} layers)"
    )


def _patterns(layers: Mapping[str, InspectedLayer]) -> str:
    """The patterns, and how they were checked."""
    each = [str(layer.spec.pattern) for layer in layers.values()]
    checked = ["checked in every group"] if any(":" in pattern for pattern in each) else []
    checked += ["entries counted"] if any("%" in pattern for pattern in each) else []
    if len(set(each)) == 1:
        return f"pattern        {each[0]}, {checked[0]}"
    return f"patterns       {counted(each)}\n               {', '.join(checked)}"


def _size_line(record: SizeRecord) -> str:
    """Size, and what became of how many layers for it."""
    named = {None: "dense", 0: "pruned"}
    counts = [
        f"{count} {named.get(block, f'block {block}')}" for block, count in record.counts.items()
    ]
    chosen = f"; layers: {', '.join(counts)}" if counts else ""
    return f"size           {record.reached:.4f}, {record.size:g} asked for{chosen}"


def _certificates(layers: Mapping[str, InspectedLayer]) -> list[bool]:
    """Those that there are."""
    return [layer.certificate for layer in layers.values() if layer.certificate is not None]


def _share(value: float | None) -> str:
    """In percent, in at most five characters."""
    if value is None:
        return "-"
    return f"{value:.1%}" if value < 0.9995 else f"{value:.0%}" if value < 9.995 else ">999%"


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
