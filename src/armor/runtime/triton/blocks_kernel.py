"""The Triton kernel of the wrappers; importing this needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from armor.runtime.triton.device_functions import layer_of, number_of, sums_of_block, tensor_of


@triton.jit
def blocks_kernel(  # type: ignore[no-untyped-def]
    x,
    layers,
    shape,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    ITEMS: tl.constexpr,
    STEP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """y (batch, features) = blockdiag(blocks) (sum over parts of x) + bias, layer by layer.

    A program takes ROWS outputs of one block for ITEMS inputs.

    Args:
        x: of `shape`, a `Sums`. layers: `BlockTensors`.
    """
    tile = tl.program_id(0)
    which = layer_of(tile, layers.first_tile)
    tile -= number_of(which, layers.first_tile)
    features = number_of(which, layers.features)
    x += number_of(which, layers.first_feature)
    y = tensor_of(which, layers.y)
    tiles: tl.constexpr = (SIZE + ROWS - 1) // ROWS
    block = tile // tiles
    row = tile % tiles * ROWS + tl.arange(0, ROWS)
    item = (tl.program_id(1) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    exists = item < shape.batch
    blocks = tensor_of(which, layers.blocks)
    total = sums_of_block(x, shape, blocks, block, row, item, exists, features, SIZE, STEP, OPERAND)
    out = block * SIZE + row
    valid = (row < SIZE) & (out < features)
    if layers.scales is not None:
        scale = tl.load(tensor_of(which, layers.scales) + out, mask=valid, other=0.0)
        total *= scale.to(tl.float32)[:, None]
    if layers.bias is not None:
        bias = tensor_of(which, layers.bias)
        total += tl.load(bias + out, mask=valid, other=0.0).to(tl.float32)[:, None]
    target = y + item[None, :] * features + out[:, None]
    tl.store(target, total.to(y.dtype.element_ty), mask=valid[:, None] & exists[None, :])
