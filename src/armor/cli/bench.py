"""``armor bench``: latency and memory of the runtime against dense and plain 2:4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armor.cli.options import Device, Json
from armor.errors import ArmorError

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from armor.bench.layers import Measured
    from armor.bench.model import Speed
    from armor.bench.roofline import Peaks
    from armor.bench.shapes import Shape


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="bench")(bench_command)


def bench_command(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A folder armor prune wrote.")
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="OUTxIN,...", help="Shapes instead, or llama-3-8b, qwen2.5-14b for theirs."
        ),
    ] = None,
    batches: Annotated[str, typer.Option(metavar="N,...", help="Rows of input.")] = "1,4,16,64",
    block: Annotated[
        int, typer.Option(metavar="N", min=0, help="Wrapper block with --shapes, 0 for none.")
    ] = 128,
    pattern: Annotated[
        str, typer.Option(metavar="N:M|P%", help="Of the cores with --shapes, such as 4:8 or 50%.")
    ] = "2:4",
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16|float16", help="auto: as on disk.")
    ] = "auto",
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads (default: as torch).")
    ] = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rounds; the median counts.")
    ] = 15,
    prompt: Annotated[
        int, typer.Option(metavar="N", min=1, help="With DIR: tokens of prefill.")
    ] = 128,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="With DIR: tokens to generate.")
    ] = 32,
    json: Json = None,
) -> None:
    """Time dense, the sparse core alone and ARMOR side by side, and say where ARMOR is slower.

    With DIR the shapes are those of its pruned layers, and the whole model is timed end to end.
    Weights are random and take turns, so that no cache holds them. On a GPU, CUDA graphs are timed.
    armor report draws what --json holds.

    Example: [bold]armor bench --shapes 4096x4096,4096x11008 --threads 2[/bold]
    """
    import torch

    from armor.bench.shapes import checkpoint_shapes, parse_shapes
    from armor.checkpoint.jsonfile import check_file
    from armor.checkpoint.reader import Checkpoint
    from armor.device import resolve_device
    from armor.hf.load import load
    from armor.sparse.pattern import Pattern

    check_file(json)
    if (folder is None) == (shapes is None):
        raise ArmorError("say what to time: a folder armor prune wrote, or --shapes OUTxIN,...")
    rows, where, kind = _batches(batches), torch.device(resolve_device(device)), _dtype(dtype)
    model: Any = None
    if folder is not None:
        chosen = checkpoint_shapes(Checkpoint.open(folder).layers)
        model = load(folder, dtype=kind or "auto").to(where)
        kind = kind or next(iter(model.parameters())).dtype
    else:
        chosen = parse_shapes(shapes or "", block or None, Pattern.parse(pattern))
        kind = kind or (torch.bfloat16 if where.type == "cuda" else torch.float32)
    if threads is not None:
        torch.set_num_threads(threads)
    if where.index is not None:
        torch.cuda.set_device(where)  # streams and graphs are of the current one
    _measure(chosen, model, rows, kind, where, repeats, prompt, tokens, json)


def _measure(
    shapes: Sequence[Shape],
    model: Any,
    batches: list[int],
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
    prompt: int,
    tokens: int,
    json: Path | None,
) -> None:
    """Time the layers, and the model if there is one; print and write the figures."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from armor.bench.layers import measure_shape
    from armor.bench.model import measure_model
    from armor.bench.report import machine, slower_line
    from armor.bench.roofline import measure_peaks
    from armor.checkpoint.jsonfile import write_json
    from armor.runtime import backends

    speeds: list[Speed] = []
    rows: list[Measured] = []
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("machine", total=len(shapes) + (model is not None))
        peaks = measure_peaks(device, dtype)
        if model is not None:
            bar.update(task, description="model")
            speeds = measure_model(model, prompt, tokens, max(1, repeats // 5))
            bar.advance(task)
        for shape in shapes:
            bar.update(task, description=shape.name)
            rows += measure_shape(shape, batches, dtype, device, repeats)
            bar.advance(task)
    about, name = machine(device), str(dtype).removeprefix("torch.")
    with_ = f" ({about['instructions']})" if about["instructions"] else ""
    console = Console(highlight=False)
    console.print(_layer_table(rows, peaks))
    if speeds:
        console.print()
        console.print(_model_table(speeds))
    console.print(
        f"{about['name']}{with_}, {name}, {about['threads']} threads,"
        f" {peaks.bandwidth / 1e9:.1f} GB/s, {peaks.flops / 1e9:.0f} GFLOP/s"
    )
    console.print(slower_line(rows), style="bold")
    if json is not None:
        data = {
            "machine": about,
            "dtype": name,
            "bandwidth": peaks.bandwidth,
            "flops_per_second": peaks.flops,
            "backends": {s.name: s.reason or "usable" for s in backends()},
            "layers": [row.to_dict(peaks) for row in rows],
            "model": [speed.to_dict() for speed in speeds],
            "summary": slower_line(rows),
        }
        write_json(json, data)


def _batches(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and 0 < int(part) < 2**20 for part in parts):
        raise ArmorError(f"--batches {text[:40]!r} is not a list of numbers such as 1,4,16")
    return [int(part) for part in parts]


def _dtype(name: str) -> torch.dtype | None:
    import torch

    known = {
        "auto": None,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    if name not in known:
        raise ArmorError(f"unknown dtype {name!r}; valid: {', '.join(known)}")
    return known[name]


def _layer_table(rows: list[Measured], peaks: Peaks) -> Table:
    from rich.table import Table

    from armor.bench.report import speedups
    from armor.sparse.pattern import TWO_OF_FOUR

    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("layer", overflow="fold")
    for title in (
        "batch",
        "dense\nms",
        f"{'2:4' if all(row.shape.pattern == TWO_OF_FOUR for row in rows) else 'core'}\nms",
        "ARMOR\nms",
        "speed-up",
        "GB/s",
        "bound",
        "of it",
        "kernel",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    ratios = speedups(rows, "ARMOR")
    cases: dict[tuple[str, int], dict[str, Measured]] = {}
    for row in rows:
        cases.setdefault((row.shape.name, row.batch), {})[row.contender] = row
    for (name, batch), case in cases.items():
        armor = case["ARMOR"]
        bound, what = armor.cost.bound(peaks)
        table.add_row(
            name,
            str(batch),
            *(f"{case[c].seconds * 1e3:.3f}" for c in ("dense", "2:4", "ARMOR")),
            f"{ratios[name, batch]:.2f}x",
            f"{armor.cost.bytes / armor.seconds / 1e9:.1f}",
            what,
            f"{bound / armor.seconds:.0%}",
            armor.kernel or armor.backend,
        )
    return table


def _model_table(speeds: list[Speed]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("whole model")
    for title in ("prefill tok/s", "decode tok/s", "parameters"):
        table.add_column(title, justify="right", no_wrap=True)
    for speed in speeds:
        table.add_row(
            speed.contender,
            f"{speed.prefill:,.0f}",
            f"{speed.decode:,.1f}",
            f"{speed.bytes / 1e6:.1f} MB",
        )
    return table
