"""The Triton backend: reads the stored values and 2-bit positions once, nothing is repacked.

A few rows are bound by memory: the input side is split until there are a few programs for each
multiprocessor, and the partial sums are added by the kernel that multiplies by A, or by torch where
there is none. Three launches: B x, S (B x) in parts, A of their sum plus bias.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import nullcontext

import torch
from torch import Tensor

from armor.packed import PackedLayer
from armor.runtime.backend import YES, Verdict

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_PROGRAMS = 4  # a multiprocessor: enough to hide the latency of memory
_GROUPS = 32  # of 4 inputs, in one step of the core kernel
_ROWS = 64  # outputs of a program


def is_available() -> Verdict:
    """Triton with a GPU; or interpreted on the CPU with TRITON_INTERPRET=1, for tests."""
    if importlib.util.find_spec("triton") is None:
        return Verdict("triton is not installed: pip install triton")
    if not torch.cuda.is_available() and not _interpreted():
        return Verdict("no GPU")
    return YES


def is_supported(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int
) -> Verdict:
    """float32, bfloat16 and float16, any shape and batch."""
    if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
        return Verdict(f"the tensors are on {device.type}")
    if dtype not in _DTYPES:
        return Verdict(f"{dtype} is none of float32, bfloat16, float16")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return Verdict("the GPU is older than compute capability 8.0")
    return YES


def pack(layer: PackedLayer) -> None:
    """Nothing: the kernels read the stored tensors."""


def matmul(x: Tensor, layer: PackedLayer, bias: Tensor | None, packed: Tensor | None) -> Tensor:
    """See `Backend.matmul`; sums in float32, ``B x`` and ``S B x`` are rounded to x's dtype."""
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        planes = False
        if layer.right is not None:
            planes = x.shape[1] % 4 == 0
            x = times_blocks(x, layer.right, planes=planes)
        parts = _core(x, layer, planes)
        if layer.left is not None:
            return times_blocks(parts, layer.left, bias, x.dtype)
        y = parts.sum(0).to(x.dtype)
        return y if bias is None else y + bias


def times_blocks(
    x: Tensor,
    blocks: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
    planes: bool = False,
) -> Tensor:
    """``blockdiag(blocks) x + bias`` in one launch.

    Args:
        x: (batch, n), or (parts, batch, n) to be added first.
        blocks: (count, b, b) with (count - 1)*b < n <= count*b. bias: (n,) or None.
        dtype: of the result, None for that of `x`.
        planes: whether to return the outputs by their place in a group of 4: (batch, 4, n/4).
    """
    from armor.runtime import triton_kernels as kernels

    parts, batch, features = (1, *x.shape) if x.dim() == 2 else tuple(x.shape)
    x = x.contiguous()
    count, size, _ = blocks.shape
    y = x.new_empty(batch, features, dtype=dtype)
    rows = min(_ROWS, kernels.power_of_two(size))
    items = min(64, kernels.power_of_two(batch))
    grid = (count * -(-size // rows), -(-batch // items))
    kernels.blocks_kernel[grid](
        x,
        blocks.contiguous(),
        x if bias is None else bias,
        y,
        parts,
        batch * features,
        batch,
        features,
        features // 4,
        SIZE=size,
        ROWS=rows,
        ITEMS=items,
        STEP=min(64, kernels.power_of_two(size)),
        BIAS=bias is not None,
        PLANES=planes,
        OPERAND=kernels.operand(blocks.dtype),
    )
    return y


def _core(x: Tensor, layer: PackedLayer, planes: bool) -> Tensor:
    """``S x`` in parts: float32 (parts, batch, out) whose sum it is."""
    from armor.runtime import triton_kernels as kernels

    batch = len(x)
    rows, kept = layer.core_values.shape
    groups = kept // 2
    items = min(64, kernels.power_of_two(batch))
    tiles = -(-rows // _ROWS) * -(-batch // items)
    steps = -(-groups // _GROUPS)
    parts = min(steps, max(1, _PROGRAMS * _processors(x.device) // tiles))
    each = -(-steps // parts)
    parts = -(-steps // each)
    y = torch.empty(parts, batch, rows, dtype=torch.float32, device=x.device)
    kernels.core_kernel[(-(-rows // _ROWS), parts, -(-batch // items))](
        x.contiguous(),
        layer.core_values.contiguous(),
        layer.core_indices.contiguous(),
        y,
        batch * rows,
        batch,
        rows,
        x.shape[1],
        groups,
        layer.core_indices.shape[1],
        1 if planes else 4,
        groups if planes else 1,
        each,
        ROWS=_ROWS,
        ITEMS=items,
        GROUPS=_GROUPS,
        OPERAND=kernels.operand(x.dtype),
        # float32 tiles of three stages outgrow the shared memory of consumer GPUs.
        num_stages=2 if x.dtype == torch.float32 else 3,
    )
    return y


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
