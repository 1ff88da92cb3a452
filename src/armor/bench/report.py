"""The results of a benchmark as numbers for JSON, and as one honest sentence."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from armor.bench.layers import Measured
from armor.simd.processor import instruction_set
from armor.versions import versions

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
        "instructions": instruction_set() if device.type == "cpu" else None,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cuda": torch.version.cuda,
        **versions("torch", "python"),
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
