"""A whole gated MLP: dense, pruned and run layer by layer, and pruned and run as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from armor.bench.layers import random_layer
from armor.bench.shapes import Shape
from armor.bench.timing import interleaved
from armor.linear import prepare
from armor.runtime.mlp import runs_as_one


class GatedMlp(nn.Module):
    """``down(silu(gate(x)) * up(x))``, as Llama has it."""

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Any:
        """(..., width) -> (..., width)."""
        return self.down(self.act(self.gate(x)) * self.up(x))


@dataclass(frozen=True)
class MlpSpeed:
    """Median seconds of a call.

    Attributes:
        layers: pruned, each layer on its own, gate and up together. whole: pruned, as it is run.
        is_one: whether `whole` ran as one, or its trial failed and it is `layers` again.
    """

    width: int
    inner: int
    block: int
    rows: int
    dense: float
    layers: float
    whole: float
    is_one: bool


def random_mlp(
    width: int, inner: int, block: int, dtype: torch.dtype, device: torch.device
) -> GatedMlp:
    """A pruned one of random numbers, prepared."""
    out, back = Shape("", inner, width, block), Shape("", width, inner, block)
    made = [random_layer(shape, dtype, device, prepare=False) for shape in (out, out, back)]
    module = GatedMlp(*made).eval()
    prepare(module)
    return module


def measure_mlp(
    width: int,
    inner: int,
    block: int,
    rows: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
) -> list[MlpSpeed]:
    """Dense and pruned in turns, for each number of input rows; on a GPU under CUDA graphs."""

    def dense(out: int, into: int) -> nn.Linear:
        return nn.Linear(into, out, bias=False, dtype=dtype, device=device)

    plain = GatedMlp(dense(inner, width), dense(inner, width), dense(width, inner)).eval()
    pruned = random_mlp(width, inner, block, dtype, device)
    found = []
    for batch in rows:
        x = torch.randn(batch, width, dtype=torch.float32, device=device).to(dtype)
        runs = {
            "dense": partial(plain, x),
            "layers": partial(GatedMlp.forward, pruned, x),
            "whole": partial(pruned, x),
        }
        seconds = interleaved(runs, device, repeats)
        found.append(MlpSpeed(width, inner, block, batch, **seconds, is_one=runs_as_one(pruned, x)))
    return found
