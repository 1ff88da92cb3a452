"""The semi_structured backend: 2:4 tensor cores through torch, for prefill and batched work.

cuSPARSELt where torch has it, else CUTLASS, whose 2:4 kernels are for compute capability 8.x. Both
need the positions in a layout of their own; the kept values stay in the stored order, so a packed
layer is one flat tensor ``[values | positions]`` whose first part the module can share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from armor.packed import PackedLayer
from armor.runtime import reference
from armor.runtime import triton as blocks
from armor.runtime.backend import YES, Verdict
from armor.sparsity import unpack

_ITEMS = 8  # rows of input are padded to a multiple
_TILES = {"cusparselt": (16, 16), "cutlass": (32, 64)}  # so are (out, in)
_PADDING_BYTE = 0b01000100  # positions 0 and 1, twice

# The fastest algorithm of cuSPARSELt by (device, out, in, input rows up to a power of two, dtype).
_algorithms: dict[tuple[Any, ...], int] = {}


def is_available() -> Verdict:
    """Needs an NVIDIA GPU from compute capability 8.0 on, and cuSPARSELt or CUTLASS for it."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return Verdict("no NVIDIA GPU")
    return YES if _engine(torch.device("cuda")) else Verdict(_NO_ENGINE)


def is_supported(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int
) -> Verdict:
    """bfloat16 and float16 on CUDA; shapes and batches are padded where needed."""
    if device.type != "cuda":
        return Verdict(f"the tensors are on {device.type}")
    if dtype not in (torch.bfloat16, torch.float16):
        return Verdict(f"{dtype} is neither bfloat16 nor float16")
    return YES if _engine(device) else Verdict(_NO_ENGINE)


def pack(layer: PackedLayer) -> Tensor:
    """``[values | positions]``, flat; unpacks this one layer for a moment with cuSPARSELt."""
    engine = _engine(layer.core_values.device)
    assert engine is not None  # is_supported was asked
    values, indices = padded(layer, engine)
    if engine == "cutlass":
        return torch.cat([values.flatten(), cutlass_positions(indices).view(values.dtype)])
    cols = 2 * values.shape[1]
    # A kept 0 would be taken for a dropped one, and its position lost.
    marked = torch.where(values == 0, 1.0, values)
    packed = torch._cslt_compress(unpack(marked, indices, cols)).flatten()
    head = packed[: values.numel()]
    if not torch.equal(head, marked.flatten()):
        # A version with another order of the values: correct, but it cannot be shared.
        return torch._cslt_compress(unpack(values, indices, cols)).flatten()
    head.copy_(values.flatten())
    return packed


def matmul(x: Tensor, layer: PackedLayer, bias: Tensor | None, packed: Tensor | None) -> Tensor:
    """See `Backend.matmul`; sums of S in float32, rounded to x's dtype between the factors."""
    assert packed is not None
    if layer.right is not None:
        x = _times_blocks(x, layer.right, None)
    y = _core(x, layer, packed)
    if layer.left is not None:
        return _times_blocks(y, layer.left, bias)
    return (y if bias is None else y + bias).contiguous()


def matmul_shared(
    x: Tensor,
    layers: Sequence[PackedLayer],
    biases: Sequence[Tensor | None],
    packed: Sequence[Tensor | None],
) -> list[Tensor]:
    """See `Backend.matmul_shared`: the products with B are one launch for three layers."""
    inputs = [x] * len(layers)
    rights = [layer.right for layer in layers if layer.right is not None]
    if len(rights) == len(layers) <= blocks.MOST_LAYERS and blocks.is_available():
        inputs = list(x.new_empty(len(layers), *x.shape))
        blocks.times_blocks(x.contiguous(), rights, [None] * len(layers), inputs)
        layers = [replace(layer, right=None) for layer in layers]
    calls = zip(inputs, layers, biases, packed, strict=True)
    return [matmul(*call) for call in calls]


def padded(layer: PackedLayer, engine: str) -> tuple[Tensor, Tensor]:
    """Values and indices of the core padded with zeros to the engine's multiples."""
    rows, cols = padded_shape(layer.shape, engine)
    values, indices = layer.core_values, layer.core_indices
    if indices.shape[1] * 2 > values.shape[1] // 2:  # half a byte of padding already
        values = functional.pad(values, (0, 2))
    missing = rows - values.shape[0]
    values = functional.pad(values, (0, cols // 2 - values.shape[1], 0, missing))
    wide = cols // 8 - indices.shape[1]
    return values, functional.pad(indices, (0, wide, 0, missing), value=_PADDING_BYTE)


def padded_shape(shape: tuple[int, int], engine: str) -> tuple[int, int]:
    """(out, in) rounded up to the engine's multiples."""
    tall, wide = _TILES[engine]
    return -(-shape[0] // tall) * tall, -(-shape[1] // wide) * wide


def cutlass_positions(indices: Tensor) -> Tensor:
    """Indices (out, in/8), uint8, in the order of CUTLASS: flat int16, out*in/16.

    Before that order, a number of CUTLASS holds four groups just as two of our bytes do.
    """
    from torch.sparse._semi_structured_conversions import (
        _calculate_meta_reordering_scatter_offsets as offsets,
    )

    plain = indices.contiguous().view(torch.int16)
    rows, cols = plain.shape
    places = offsets(rows, cols, torch.int16, indices.device)
    return torch.empty_like(plain).flatten().scatter_(0, places, plain.flatten())


def _core(x: Tensor, layer: PackedLayer, packed: Tensor) -> Tensor:
    """``S x`` for x (batch, in): (batch, out)."""
    engine = _engine(x.device)
    assert engine is not None
    rows, cols = padded_shape(layer.shape, engine)
    batch = len(x)
    x = functional.pad(x, (0, cols - x.shape[1], 0, -batch % _ITEMS)).contiguous()
    if engine == "cutlass":
        kept = rows * cols // 2
        values = packed[:kept].view(rows, cols // 2)
        positions = packed[kept:].view(torch.int16).view(rows, cols // 16)
        y = torch._sparse_semi_structured_mm(values, positions, x.t()).t()
    else:
        algorithm = _algorithm(packed, x, rows)
        y = torch._cslt_sparse_mm(packed, x.t(), transpose_result=True, alg_id=algorithm)
        y = y.view(len(x), rows)
    return y[:batch, : layer.shape[0]]


def _algorithm(packed: Tensor, x: Tensor, rows: int) -> int:
    items = 1 << (len(x) - 1).bit_length()
    key = (x.device, rows, x.shape[1], items, x.dtype)
    if key not in _algorithms:
        if torch.cuda.is_current_stream_capturing():
            return 0  # the search times kernels, which a graph cannot record
        _algorithms[key] = torch._cslt_sparse_mm_search(packed, x.t(), transpose_result=True)
    return _algorithms[key]


def _times_blocks(x: Tensor, factor: Tensor, bias: Tensor | None) -> Tensor:
    if blocks.is_available():
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        blocks.times_blocks(x.contiguous(), [factor], [bias], [result])
        return result
    y = reference.times_blocks(x, factor)
    return y if bias is None else y + bias


_NO_ENGINE = (
    "torch has no cuSPARSELt here (CUTLASS's 2:4 kernels are for compute capability 8.x only)"
)


def _engine(device: torch.device) -> str | None:
    """ "cusparselt", "cutlass", or None if the GPU can use neither."""
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8 and torch.backends.cusparselt.is_available():
        return "cusparselt"
    return "cutlass" if major == 8 else None
