"""The compressed form of 2:4 tensor cores: one flat tensor ``[values | positions]``.

cuSPARSELt and CUTLASS need the positions in an order of their own; the kept values stay in the
stored order. So the compressed tensor replaces both stored ones: `positions` says where each is,
for decoding and for saving.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from armor.runtime.semi_structured.places import Places, learn
from armor.sparse.layer import PackedLayer
from armor.sparse.pack import unpack

_TILES = {"cusparselt": (16, 16), "cutlass": (32, 64)}  # (out, in) are padded to multiples
_PADDING_BYTE = 0b01000100  # positions 0 and 1, twice

# Where the positions are, by (device, engine, padded out, padded in).
_places: dict[tuple[Any, ...], Places | None] = {}


def engine_of(device: torch.device) -> str | None:
    """ "cusparselt", "cutlass", or None if the GPU can use neither."""
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8 and torch.backends.cusparselt.is_available():
        return "cusparselt"
    return "cutlass" if major == 8 else None


def compress(layer: PackedLayer) -> Tensor:
    """What the engine computes from, flat."""
    engine = engine_of(layer.core_values.device)
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


def positions(layer: PackedLayer, packed: Tensor) -> tuple[Tensor, Places] | None:
    """The positions inside `packed` (int16, flat) and where each is; None if that is not known.

    `core_indices` of the layer is not read: it may have been let go.
    """
    device, dtype = packed.device, packed.dtype
    engine = engine_of(device)
    if engine is None:
        return None
    rows, cols = padded_shape(layer.shape, engine)
    key = (device, engine, rows, cols)
    if key not in _places:

        def arrange(indices: Tensor) -> Tensor:
            if engine == "cutlass":
                return cutlass_positions(indices)
            ones = torch.ones(rows, cols // 2, dtype=dtype, device=device)
            whole = torch._cslt_compress(unpack(ones, indices, cols)).flatten()
            return whole[rows * cols // 2 :].view(torch.int16)

        _places[key] = learn(rows, cols // 16, arrange, device)
    places = _places[key]
    return None if places is None else (packed[rows * cols // 2 :].view(torch.int16), places)


def whole(layer: PackedLayer, packed: Tensor | None) -> PackedLayer:
    """The layer with the positions it has let go of, see `ArmorLinear.prepare`."""
    if packed is None or layer.core_indices.numel():
        return layer
    found = positions(layer, packed)
    assert found is not None  # it was when they were let go
    return replace(layer, core_indices=found[1].stored(found[0], layer))


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
