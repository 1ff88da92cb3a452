"""The results of a benchmark as numbers for JSON, as a plot, and as one honest sentence."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from armor.bench.layers import Measured

_EVEN = 0.98  # slower than this share of dense is slower


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return {
        "device": str(device),
        "name": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def speedups(rows: Sequence[Measured], contender: str) -> dict[tuple[str, int], float]:
    """Dense seconds divided by those of `contender`, by layer and batch."""
    dense = {(r.shape.name, r.batch): r.seconds for r in rows if r.contender == "dense"}
    return {
        (row.shape.name, row.batch): dense[row.shape.name, row.batch] / row.seconds
        for row in rows
        if row.contender == contender
    }


def slower_line(rows: Sequence[Measured]) -> str:
    """Where ARMOR is slower than dense."""
    slow = {key: ratio for key, ratio in speedups(rows, "ARMOR").items() if ratio < _EVEN}
    if not slow:
        return "ARMOR is nowhere slower than dense"
    cases = [
        f"{name} batch {batch} ({ratio:.2f}x)"
        for (name, batch), ratio in sorted(slow.items(), key=lambda item: item[1])
    ]
    return "ARMOR is slower than dense at " + ", ".join(cases)


def write_plot(rows: Sequence[Measured], path: Path, title: str) -> None:
    """Speed against dense over the batch, one colour a layer, ARMOR solid and 2:4 dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(1.0, color="grey", linewidth=1)
    names = list(dict.fromkeys(row.shape.name for row in rows))
    for contender, style in (("ARMOR", "-o"), ("2:4", "--")):
        ratios = speedups(rows, contender)
        for number, name in enumerate(names):
            points = sorted((batch, r) for (layer, batch), r in ratios.items() if layer == name)
            axes.plot(
                [batch for batch, _ in points],
                [ratio for _, ratio in points],
                style,
                color=f"C{number % 10}",
                label=f"{name} {contender}",
                markersize=4,
            )
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows of input")
    axes.set_ylabel("speed, dense = 1")
    axes.set_title(title)
    axes.legend(fontsize="x-small", ncols=2)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            figure.savefig(file, format="png", dpi=150)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
