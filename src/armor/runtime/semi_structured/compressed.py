"""The compressed form of 2:4 tensor cores: one flat tensor ``[values | positions]``.

cuSPARSELt and CUTLASS need the positions in an order of their own; the kept values stay in the
stored order, so that a layer can hold them once.
"""

from __future__ import annotations

from threading import local

import torch
from jaxtyping import Int16, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

from armor.sparse.layer import PackedLayer
from armor.sparse.pack import unpack

# (out, in) are padded to multiples; "float8" is cuSPARSELt with 8-bit floats.
_TILES = {"cusparselt": (16, 16), "cutlass": (32, 64), "float8": (32, 32)}
_PADDING_BYTE = 0b01000100  # positions 0 and 1, twice

# torch makes one handle of cuSPARSELt for each thread, on the GPU that is current then.
_handle = local()


def engine_of(device: torch.device) -> str | None:
    """ "cusparselt", "cutlass", or None if the GPU can use neither.

    A thread uses cuSPARSELt on one GPU alone, the first: torch's handle is of that one.
    """
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8 and torch.backends.cusparselt.is_available():
        own = _number(device)
        if getattr(_handle, "gpu", own) == own:
            return "cusparselt"
    return "cutlass" if major == 8 else None


def use_cusparselt(device: torch.device) -> None:
    """Say that this thread is about to call cuSPARSELt on `device`, which is current."""
    if device.type == "cuda":
        _handle.gpu = _number(device)


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def compress(layer: PackedLayer) -> Shaped[Tensor, " compressed"]:
    """What the engine computes from, in the dtype of the layer."""
    engine = engine_of(layer.core_values.device)
    assert engine is not None  # is_supported was asked
    values, indices = padded(layer, engine)
    if engine == "cutlass":
        return torch.cat([values.flatten(), cutlass_positions(indices).view(values.dtype)])
    use_cusparselt(values.device)
    cols = 2 * values.shape[1]
    # A kept 0 would be taken for a dropped one, and its position lost.
    marked = torch.where(values == 0, 1.0, values)
    compressed = torch._cslt_compress(unpack(marked, indices, cols)).flatten()
    head = compressed[: values.numel()]
    if not torch.equal(head, marked.flatten()):
        # A version with another order of the values: correct, but they cannot be held once.
        return torch._cslt_compress(unpack(values, indices, cols)).flatten()
    head.copy_(values.flatten())
    return compressed


def padded(
    layer: PackedLayer, engine: str
) -> tuple[Shaped[Tensor, "rows kept"], UInt8[Tensor, "rows bytes"]]:
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


def cutlass_positions(indices: UInt8[Tensor, "rows bytes"]) -> Int16[Tensor, " numbers"]:
    """Indices (out, in/8) in the order of CUTLASS: out*in/16 numbers.

    Before that order, a number of CUTLASS holds four groups just as two of our bytes do.
    """
    from torch.sparse._semi_structured_conversions import (
        _calculate_meta_reordering_scatter_offsets as offsets,
    )

    plain = indices.contiguous().view(torch.int16)
    rows, cols = plain.shape
    places = offsets(rows, cols, torch.int16, indices.device)
    return torch.empty_like(plain).flatten().scatter_(0, places, plain.flatten())
