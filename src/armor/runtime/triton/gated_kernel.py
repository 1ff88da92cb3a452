"""The Triton kernel between the cores of a gated MLP; importing this needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from armor.runtime.triton.device_functions import sums_of_block


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The activation of that name in `armor.runtime.gated`, of float32."""
    if ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    if ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if ACTIVATION == "gelu_tanh":  # (1 + tanh z) / 2 is the sigmoid of 2 z
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    if ACTIVATION == "relu":
        return tl.maximum(x, 0.0)
    positive = tl.maximum(x, 0.0)  # relu2
    return positive * positive


@triton.jit
def _biased(total, bias, out, valid):  # type: ignore[no-untyped-def]
    """With the bias of the rows `out`, if there is one."""
    if bias is not None:
        total += tl.load(bias + out, mask=valid, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit
def gated_kernel(  # type: ignore[no-untyped-def]
    tensors,
    shape,
    features,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ITEMS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """y = B (act(A_gate gate + bias) * (A_up up + bias)), (batch, features), block by block.

    A program takes one block, which is the same features of all, for ITEMS inputs.

    Args:
        tensors: `GatedTensors`. shape: of gate and of up, a `Sums`: parts to be added first.
        TILE: SIZE, up to a power of two.
    """
    block = tl.program_id(0)
    item = (tl.program_id(1) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    exists = item < shape.batch
    row = tl.arange(0, TILE)
    out = block * SIZE + row
    valid = (row < SIZE) & (out < features)
    left = tensors.gate_left
    gate = sums_of_block(
        tensors.gate, shape, left, block, row, item, exists, features, SIZE, TILE, OPERAND
    )
    gate = _activated(_biased(gate, tensors.gate_bias, out, valid), ACTIVATION)
    left = tensors.up_left
    up = sums_of_block(
        tensors.up, shape, left, block, row, item, exists, features, SIZE, TILE, OPERAND
    )
    hidden = gate * _biased(up, tensors.up_bias, out, valid)
    factor = tl.load(
        tensors.down + block.to(tl.int64) * SIZE * SIZE + row[:, None] * SIZE + row[None, :],
        mask=(row < SIZE)[:, None] & valid[None, :],
        other=0.0,
    )
    # Nothing is left of features that there are not, whatever A has for them.
    hidden = tl.where(valid[:, None], hidden, 0.0)
    total = tl.dot(factor.to(OPERAND), hidden.to(OPERAND), input_precision="ieee")
    tl.store(
        tensors.y + item[None, :] * features + out[:, None],
        total.to(tensors.y.dtype.element_ty),
        mask=valid[:, None] & exists[None, :],
    )
