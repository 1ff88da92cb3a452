"""Layers with rounded cores on the CPU: the kernels read the stored codes; nothing is repacked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from armor.runtime.cpu import bfloat16_kernels, rounded_kernels
from armor.runtime.cpu.arrays import as_array
from armor.runtime.cpu.choice import ROW, candidates
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import FP8

#: The name of `packed_product` among kernels.
KERNEL = "codes"
#: From so many rows on codes are turned into bfloat16 first, where the processor multiplies it.
LEAST_ROWS_DOT = 12
_MOST_ROWS = 64  # that read codes one by one
_PANEL_VALUES = 2**21  # that are turned at a time: so many that starting the threads is worth it
_COLUMNS = 64  # inputs are padded to a multiple of this
_FLOAT32: Any = {"dtype": torch.float32, "device": "cpu"}
_NO_WRAPPER = torch.empty(0, 0, 0, **_FLOAT32), torch.empty(0, **_FLOAT32)


def kernel_of(dtype: torch.dtype, batch: int) -> str:
    """The name of the kernel for so many rows of input."""
    if batch == 1:
        return ROW
    if batch >= LEAST_ROWS_DOT and "dot" in candidates(dtype, batch):
        return "dot"
    return KERNEL if batch <= _MOST_ROWS else "panels"


def packed_product(x: Tensor, layer: PackedLayer) -> Tensor:
    """``A S B x`` by one pass over the codes; everything between the wrappers stays float32."""
    batch, cols = x.shape
    rows, _ = layer.shape
    tile = -(-batch // 4) * 4
    width = cols + -cols % _COLUMNS
    if layer.right is not None:
        width = max(width, len(layer.right) * layer.right.shape[1])
    inputs = torch.zeros(tile, width, **_FLOAT32)
    inputs[:batch, :cols] = x
    height = rows if layer.left is None else len(layer.left) * layer.left.shape[1]
    outputs = torch.zeros(tile, height, **_FLOAT32)
    left, right = _wrapper(layer.left, layer.left_scales), _wrapper(layer.right, layer.right_scales)
    rounded_kernels.rounded_product(*_core(layer), *left, *right, inputs.numpy(), outputs.numpy())
    return outputs[:batch, :rows].to(x.dtype).contiguous()


def core_product_bfloat16(layer: PackedLayer, x: Tensor, y: Tensor) -> None:
    """``y = S x``: rows of S as bfloat16, a few at a time, to the kernel of bfloat16.

    Args:
        x, y: as `bfloat16_kernels.core_product` takes them.
    """
    codes, kept, scales, indices = _core(layer)
    rows, given = y.shape[0], as_array(x)
    height = min(rows, max(1, _PANEL_VALUES // kept))
    panel = torch.empty(height, kept, **_FLOAT32)
    for start in range(0, rows, height):
        stop = min(rows, start + height)
        rounded_kernels.decode_rows(codes, scales, start, stop, panel.numpy())
        values = as_array(panel[: stop - start].to(torch.bfloat16))
        bfloat16_kernels.core_product(values, indices[start:stop], given, y[start:stop].numpy())


def unpacker(layer: PackedLayer) -> tuple[Callable[[int, int, Tensor], None], int]:
    """What unpacks rows start .. stop-1 of S into a panel, and how wide that is."""
    core = _core(layer)
    width = -(-layer.in_features // 4) * 4

    def unpack(start: int, stop: int, panel: Tensor) -> None:
        wide = panel if panel.dtype == torch.float32 else torch.empty(panel.shape, **_FLOAT32)
        rounded_kernels.unpack_rounded(*core, start, stop, wide.numpy())
        if wide is not panel:
            panel.copy_(wide)

    return unpack, width


def _core(layer: PackedLayer) -> tuple[Any, int, Any, Any]:
    """Codes, kept values of a row, scales and positions."""
    assert layer.core_scales is not None
    arrays = map(as_array, (layer.core_values, layer.core_scales, layer.core_indices))
    codes, scales, indices = arrays
    if layer.levels == FP8:
        codes = codes.view(bool)  # see `armor.simd.codes`
    return codes, layer.kept, scales, indices


def _wrapper(blocks: Tensor | None, scales: Tensor | None) -> tuple[Any, Any]:
    """Blocks, and the scale of every row."""
    if blocks is None:
        blocks, scales = _NO_WRAPPER
    elif scales is None:
        scales = torch.ones(blocks.shape[0] * blocks.shape[1], **_FLOAT32)
    return as_array(blocks), as_array(scales)
