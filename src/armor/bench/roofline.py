"""What a machine could do: bandwidth, arithmetic, and the shortest time they allow a layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from armor.bench.timing import interleaved


@dataclass(frozen=True)
class Peaks:
    """Measured: bytes read a second from memory, FLOPs a second of a dense product."""

    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Cost:
    """What one call reads and writes (bytes) and computes (FLOPs, kept values only)."""

    bytes: int
    flops: int

    def bound(self, peaks: Peaks) -> tuple[float, str]:
        """The seconds below which no kernel can be, and what sets them: "bytes" or "FLOPs"."""
        memory, arithmetic = self.bytes / peaks.bandwidth, self.flops / peaks.flops
        return (memory, "bytes") if memory >= arithmetic else (arithmetic, "FLOPs")


def measure_peaks(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> Peaks:
    """A sum over more than any cache holds, and a large square product, by torch.

    The product is in `dtype`, or on a CPU in float32 where that is faster: without instructions
    for 16-bit numbers the best kernel converts them, and torch's own product in them is no measure.
    """
    big = device.type == "cuda"
    data = torch.ones((2**30 if big else 2**28) // dtype.itemsize, dtype=dtype, device=device)
    size = 8192 if big else 1024
    kind = dtype if big else _fastest(dtype, repeats)
    square = _random_square(size, kind, device)
    seconds = interleaved(
        {"read": lambda: data.view(torch.float32).sum(), "multiply": lambda: square @ square},
        device,
        repeats,
    )
    return Peaks(data.nbytes / seconds["read"], 2 * size**3 / seconds["multiply"])


def _fastest(dtype: torch.dtype, repeats: int) -> torch.dtype:
    """`dtype` or float32: in which the CPU multiplies faster."""
    cpu = torch.device("cpu")
    squares = {kind: _random_square(256, kind, cpu) for kind in (dtype, torch.float32)}
    runs = {str(kind): partial(torch.matmul, one, one) for kind, one in squares.items()}
    seconds = interleaved(runs, cpu, repeats)
    return min(squares, key=lambda kind: seconds[str(kind)])


def _random_square(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(size, size, dtype=torch.float32, device=device).to(dtype)
