"""A part of a packed layer: some of its outputs, or of its inputs, as tensor parallelism needs it.

A wrapper block is never cut: a part holds every block that its range touches, whole. Its surplus
outputs are to be dropped, and its surplus inputs are zeros, so that parts of the inputs sum to the
whole: ``A (S (B x))`` is linear in x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from armor.sparse.layer import PackedLayer
from armor.sparse.pack import pack, unpack, unpack_mask
from armor.sparse.pattern import Pattern
from armor.sparse.positions import count_ones


def held_rows(begin: int, end: int, rows: int, block: int | None) -> tuple[int, int]:
    """The outputs that a part for outputs `begin` to `end` of `rows` holds, as such a range."""
    return _widened(begin, end, rows, block or 1)


def held_columns(
    begin: int, end: int, cols: int, block: int | None, pattern: Pattern
) -> tuple[int, int]:
    """The inputs that a part for inputs `begin` to `end` of `cols` holds; groups are whole, too."""
    return _widened(begin, end, cols, math.lcm(block or 1, pattern.group or 1))


def _widened(begin: int, end: int, size: int, step: int) -> tuple[int, int]:
    return begin // step * step, min(-(-end // step) * step, size)


def cut_rows(layer: PackedLayer, begin: int, end: int) -> PackedLayer:
    """The part with the outputs `held_rows`; its tensors are copies."""
    rows, _ = layer.shape
    first, last = held_rows(begin, end, rows, layer.block)
    indices = layer.core_indices[first:last].clone()
    if layer.pattern.is_unstructured:
        start = count_ones(layer.core_indices[:first])
        values = layer.core_values[start : start + count_ones(indices)].clone()
    else:
        values = layer.core_values[first:last].clone()
    return PackedLayer(
        layer.in_features,
        values,
        indices,
        _blocks(layer.left, first, last),
        layer.right,
        layer.pattern,
    )


def cut_columns(layer: PackedLayer, begin: int, end: int) -> PackedLayer:
    """The part with the inputs `held_columns`; its tensors are copies, but for A, which is whole.

    The core is unpacked on the way, in its own dtype.
    """
    cols, pattern = layer.in_features, layer.pattern
    first, last = held_columns(begin, end, cols, layer.block, pattern)
    core = unpack(layer.core_values, layer.core_indices, cols, pattern)[:, first:last]
    mask = unpack_mask(layer.core_indices, cols, pattern)[:, first:last]
    values, indices = pack(core, mask, pattern)
    right = _blocks(layer.right, first, last)
    return PackedLayer(last - first, values, indices, layer.left, right, pattern)


def _blocks(wrapper: Tensor | None, first: int, last: int) -> Tensor | None:
    """Those of a wrapper that cover the entries `first`, which begins a block, to `last`."""
    if wrapper is None:
        return None
    size = wrapper.shape[-1]
    return torch.clone(wrapper[first // size : -(-last // size)])
