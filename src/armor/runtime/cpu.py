"""The CPU backend: Numba kernels on the stored tensors; nothing is repacked."""

from __future__ import annotations

import sys
from typing import Any

import torch
from numba import config, set_num_threads
from torch import Tensor
from torch.nn import functional

from armor.packed import PackedLayer
from armor.runtime import cpu_bfloat16, cpu_kernels
from armor.runtime.backend import YES, Verdict
from armor.runtime.reference import times_blocks
from armor.runtime.simd import has_amx, has_float16
from armor.runtime.simd_bfloat16 import has_dot

# Up to here one pass over the packed values for all rows; above, panels of unpacked rows and BLAS.
_FEW = 64
_FEW_DOT = 128  # with the processor's own instructions for bfloat16
_FEW_AMX = 8  # where BLAS has matrix instructions for bfloat16, which our kernels have not
_SERIAL = 2**18  # products up to which one thread is done before others have started
_PANEL_BYTES = 4 * 2**20  # of one unpacked panel: fits into the second or third level cache

# How the kernels get each dtype (NumPy has no bfloat16, Numba no float16): see `simd`.
_VIEWS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}
_NONE = torch.empty(0, 0, 0)


def is_available() -> Verdict:
    """Needs a little-endian machine: 4 bytes of indices are read as one number."""
    if sys.byteorder != "little":
        return Verdict("the machine is big-endian")
    return YES


def is_supported(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int
) -> Verdict:
    """float32, bfloat16 and float16 on the CPU, any shape and batch."""
    if device.type != "cpu":
        return Verdict(f"the tensors are on {device.type}")
    if dtype not in _VIEWS:
        return Verdict(f"{dtype} is none of float32, bfloat16, float16")
    if dtype == torch.float16 and not has_float16():
        return Verdict("the processor does not convert float16 (no F16C)")
    return YES


def pack(layer: PackedLayer) -> None:
    """Nothing: the kernels read the stored tensors."""


def matmul(x: Tensor, layer: PackedLayer, bias: Tensor | None, packed: Tensor | None) -> Tensor:
    """See `Backend.matmul`; sums in float32."""
    settings: Any = config  # its attributes are made on import
    small = layer.core_values.numel() * len(x) <= _SERIAL
    set_num_threads(1 if small else min(torch.get_num_threads(), settings.NUMBA_NUM_THREADS))
    few, product = _FEW, _few
    if x.dtype == torch.bfloat16 and len(x) > 1:
        if has_dot():
            few, product = _FEW_DOT, _few_bfloat16
        elif has_amx():
            few = _FEW_AMX
    if len(x) > few:
        product = _many
    y = product(x, layer)
    return y if bias is None else y.add_(bias)


def _few(x: Tensor, layer: PackedLayer) -> Tensor:
    """One pass over the values; everything between the wrappers stays float32."""
    batch, cols = x.shape
    rows, kept = layer.core_values.shape
    tile = 1 if batch == 1 else -(-batch // 4) * 4
    width = max(
        -(-kept // 16) * 32, 0 if layer.right is None else len(layer.right) * layer.right.shape[1]
    )
    inputs = torch.zeros(tile, width)
    inputs[:batch, :cols] = x
    height = rows if layer.left is None else len(layer.left) * layer.left.shape[1]
    outputs = torch.zeros(tile, height)
    cpu_kernels.few_rows(
        _array(layer.core_values),
        _array(layer.core_indices),
        _array(_NONE if layer.left is None else layer.left),
        _array(_NONE if layer.right is None else layer.right),
        inputs.numpy(),
        outputs.numpy(),
    )
    return outputs[:batch, :rows].to(x.dtype).contiguous()


def _few_bfloat16(x: Tensor, layer: PackedLayer) -> Tensor:
    """`_few` with the processor's instructions for bfloat16, rounded to it between the factors."""
    if layer.right is not None:
        x = _times_blocks_bfloat16(x, layer.right)
    batch = len(x)
    rows, kept = layer.core_values.shape
    x = functional.pad(x, (0, -(-kept // 32) * 64 - x.shape[1], 0, -len(x) % cpu_bfloat16.TILE))
    y = torch.empty(rows, len(x))
    values, indices = _array(layer.core_values), _array(layer.core_indices)
    cpu_bfloat16.core_rows(values, indices, _array(x), y.numpy())
    y = y.T[:batch].to(x.dtype, memory_format=torch.contiguous_format)
    return y if layer.left is None else _times_blocks_bfloat16(y, layer.left)


def _many(x: Tensor, layer: PackedLayer) -> Tensor:
    """Panels of rows of S, unpacked one at a time into the same scratch, times x by BLAS."""
    if layer.right is not None:
        x = times_blocks(x, layer.right)
    rows, kept = layer.core_values.shape
    x = functional.pad(x, (0, 2 * kept - x.shape[1]))
    height = min(rows, max(1, _PANEL_BYTES // (2 * kept * x.element_size())))
    panel = x.new_empty(height, 2 * kept)
    narrow = x.element_size() == 2
    unpack = cpu_kernels.unpack_rows16 if narrow else cpu_kernels.unpack_rows32
    values = layer.core_values.detach().contiguous()
    source = values.view(torch.uint16) if narrow else values
    target = panel.view(torch.uint64) if narrow else panel
    y = x.new_empty(len(x), rows)
    for start in range(0, rows, height):
        stop = min(rows, start + height)
        unpack(source.numpy(), _array(layer.core_indices), start, stop, target.numpy())
        y[:, start:stop] = x @ panel[: stop - start].T
    return y if layer.left is None else times_blocks(y, layer.left)


def _times_blocks_bfloat16(x: Tensor, blocks: Tensor) -> Tensor:
    count, size, _ = blocks.shape
    if size % 32:
        return times_blocks(x, blocks)
    padded = functional.pad(x, (0, count * size - x.shape[1]))
    y = torch.empty(len(x), count * size)
    cpu_bfloat16.block_rows(_array(blocks), _array(padded), y.numpy())
    return y[:, : x.shape[1]].to(x.dtype).contiguous()


def _array(tensor: Tensor) -> Any:
    """The tensor as the kernels want it: contiguous, bits of 16-bit floats as integers."""
    tensor = tensor.detach().contiguous()
    return tensor.view(_VIEWS.get(tensor.dtype, tensor.dtype)).numpy()
