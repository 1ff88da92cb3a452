"""The tensors of a layer as the kernels of the CPU backend take them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armor.errors import ArmorError
from armor.runtime.cpu import any_pattern_kernels
from armor.sparse import positions
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import Pattern

# How the kernels of `armor.simd.vectors` get each dtype: NumPy has no bfloat16, Numba no float16.
VIEWS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}


_NO_TABLE = np.zeros(128, np.uint8)


def as_array(tensor: Tensor) -> Any:
    """The tensor as the kernels want it: contiguous, bits of 16-bit floats as integers."""
    tensor = tensor.detach().contiguous()
    return tensor.view(VIEWS.get(tensor.dtype, tensor.dtype)).numpy()


def core_arrays(layer: PackedLayer) -> tuple[Any, Any, Any, Any, int, int]:
    """What the kernels of `any_pattern_kernels` take first, for a core that is not 2:4.

    Raises:
        ArmorError: the bitmap of an unstructured core says another number of values than it has.
    """
    pattern, values, indices = layer.pattern, layer.core_values, as_array(layer.core_indices)
    flat = as_array(values.flatten())
    if pattern.is_unstructured:
        starts = np.zeros(layer.shape[0] + 1, np.intp)
        any_pattern_kernels.count_rows(indices, starts[1:])
        np.cumsum(starts, out=starts)
        if starts[-1] != len(flat):
            raise ArmorError(f"the bitmap keeps {starts[-1]} values, but there are {len(flat)}")
        return flat, starts, indices, _NO_TABLE, 8, layer.in_features
    starts = np.arange(layer.shape[0] + 1, dtype=np.intp) * values.shape[1]
    groups = -(-layer.in_features // pattern.group)
    width = 8 // pattern.group * positions.code_bits(pattern)
    return flat, starts, indices, _masks(pattern), width, groups * pattern.group


@cache
def _masks(pattern: Pattern) -> Any:
    """uint8 (128,), repeating: the masks of 8 columns by the number that says them, 0 for none."""
    bits, count = positions.code_bits(pattern), 8 // pattern.group
    masks = np.zeros(2**bits, np.uint8)
    for rank, mask in enumerate(pattern.masks):
        masks[rank] = sum(1 << position for position in mask)
    found = np.zeros(2 ** (bits * count), np.uint8)
    numbers = np.arange(len(found))
    for group in range(count):
        found |= masks[numbers >> bits * group & len(masks) - 1] << pattern.group * group
    return np.tile(found, 128 // len(found))
