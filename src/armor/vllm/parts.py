"""Parts: what one process holds of a layer of vLLM's, each from one stored matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from armor.checkpoint.reader import Checkpoint, check_layer
from armor.errors import ArmorError
from armor.linear import ArmorLinear
from armor.runtime.api import linears
from armor.sparse.layer import PackedLayer
from armor.sparse.shard import cut_columns, cut_rows, held_columns, held_rows


@dataclass(frozen=True)
class Wanted:
    """What a process computes of a stored matrix.

    Attributes:
        name: of the matrix, in the checkpoint. rows, columns: of its outputs and inputs.
    """

    name: str
    rows: tuple[int, int]
    columns: tuple[int, int]


class Part(nn.Module):
    """A linear without a bias, of some inputs and outputs of a stored matrix.

    Attributes:
        linear: may take more inputs and give more outputs than are wanted: a wrapper block is
            never cut.
        padding: how many zeros go before and after the inputs. kept: the outputs that are wanted.
    """

    def __init__(self, linear: nn.Module, padding: tuple[int, int], kept: tuple[int, int]) -> None:
        super().__init__()
        self.linear = linear
        self.padding = padding
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.narrow(self.linear(self.widen(x)))

    def widen(self, x: Tensor) -> Tensor:
        """The inputs of `linear`."""
        return functional.pad(x, self.padding) if any(self.padding) else x

    def narrow(self, y: Tensor) -> Tensor:
        """What is wanted of the outputs of `linear`."""
        begin, end = self.kept
        return y if end - begin == y.shape[-1] else y[..., begin:end].contiguous()


def run_parts(parts: Sequence[Part], x: Tensor) -> Tensor:
    """The outputs of all parts, side by side; of packed ones together, in one call.

    Args:
        x: (..., in).
    """
    if len(parts) == 1:
        return parts[0](x)
    packed = [p for p in parts if isinstance(p.linear, ArmorLinear) and not any(p.padding)]
    found: dict[int, Tensor] = {}
    if len(packed) > 1:
        calls = [part.linear.call() for part in packed if isinstance(part.linear, ArmorLinear)]
        for part, y in zip(packed, linears(x, calls), strict=True):
            found[id(part)] = part.narrow(y)
    return torch.cat([found[id(p)] if id(p) in found else p(x) for p in parts], dim=-1)


def read_part(
    checkpoint: Checkpoint, wanted: Wanted, dtype: torch.dtype, device: torch.device
) -> Part:
    """Read a stored matrix, and keep what is wanted of it.

    Raises:
        ArmorError: its indices do not fit its pattern, or it is not stored.
    """
    name, (begin, end) = wanted.name, wanted.rows
    if name not in checkpoint.layers:
        return Part(_dense(checkpoint, wanted, dtype, device), (0, 0), (0, end - begin))
    spec, tensors = checkpoint.layers[name], checkpoint.tensors
    parts = {part: tensors[f"{name}.{part}"].load() for part in spec.tensor_shapes()}
    layer = PackedLayer.of(spec.shape[1], parts, spec.pattern)
    check_layer(name, layer)
    rows, cols = spec.shape
    first, last = held_rows(begin, end, rows, spec.block)
    if (first, last) != (0, rows):
        layer = cut_rows(layer, begin, end)
    left, right = wanted.columns
    low, high = held_columns(left, right, cols, spec.block, spec.pattern)
    if (low, high) != (0, cols):
        layer = cut_columns(layer, left, right)
    linear = ArmorLinear.from_packed(_moved(layer, dtype, device))
    linear.prepare()
    return Part(linear, (left - low, high - right), (begin - first, end - first))


def _dense(
    checkpoint: Checkpoint, wanted: Wanted, dtype: torch.dtype, device: torch.device
) -> nn.Linear:
    stored = checkpoint.tensors.get(f"{wanted.name}.weight")
    if stored is None:
        raise ArmorError(f"{checkpoint.folder} has no {wanted.name}, which vLLM asks for")
    (top, bottom), (left, right) = wanted.rows, wanted.columns
    weight = stored.load()[top:bottom, left:right].to(dtype=dtype, device=device, copy=True)
    linear = nn.Linear(right - left, bottom - top, bias=False, device="meta", dtype=dtype)
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear


def _moved(layer: PackedLayer, dtype: torch.dtype, device: torch.device) -> PackedLayer:
    """The layer on `device`, its floats in `dtype`."""
    moved = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None)
        for name, tensor in layer.tensors().items()
    }
    return PackedLayer.of(layer.in_features, moved, layer.pattern)
