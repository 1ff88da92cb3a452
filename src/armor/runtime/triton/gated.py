"""The launch between the cores of a gated MLP: A of gate and up, the activation, and B of down.

Each of them is a pass over the inputs of its own otherwise. A block of A of gate, one of A of up
and one of B of down are about the same features, so one program does all three.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from armor.runtime.backend import YES, Verdict
from armor.runtime.gated import Gated
from armor.runtime.guard import on_device
from armor.runtime.triton.arguments import GatedTensors, Sums

_DTYPES = (torch.bfloat16, torch.float16)  # float32 outgrows the registers
_LARGEST = 128  # block
_ITEMS = 64


def takes_gated(gated: Gated) -> Verdict:
    """See `Gating.takes_gated`: 16-bit layers with wrappers of one block size, none in codes."""
    layers = [call.layer for call in gated.calls]
    blocks = {layer.block for layer in layers}
    (block, *others) = blocks
    if others or block is None or block > _LARGEST or any(layer.right is None for layer in layers):
        return Verdict(f"wrappers of {blocks} are not of one size up to {_LARGEST}")
    if any(layer.core is not None for layer in layers):
        return Verdict("its cores are in codes")
    if len({layer.dtype for layer in layers}) > 1 or layers[0].dtype not in _DTYPES:
        return Verdict("its numbers are not of 16 bits")
    return YES


def between_cores(
    gate: Float[Tensor, "batch _"] | Float[Tensor, "parts batch _"],
    up: Float[Tensor, "batch _"] | Float[Tensor, "parts batch _"],
    gated: Gated,
    dtype: torch.dtype,
) -> Float[Tensor, "batch n"]:
    """``B (act(A_gate gate + bias) * (A_up up + bias))``; products are summed in float32.

    Args:
        gate, up: what the cores of these two made: n columns of (batch, width), or of parts of it,
            to be added first. One set of strides, the last of them 1.
        dtype: of the result.
    """
    from armor.runtime.triton.device_functions import operand, power_of_two
    from armor.runtime.triton.gated_kernel import gated_kernel

    batch, features = gate.shape[-2:]
    assert gate.stride() == up.stride()
    shape = Sums(1 if gate.dim() == 2 else len(gate), batch, gate.stride(-2))
    one, two, down = (call.layer for call in gated.calls)
    assert one.left is not None
    assert two.left is not None
    assert down.right is not None
    size = one.left.shape[-1]
    y = torch.empty(batch, features, dtype=dtype, device=gate.device)
    with on_device(gate.device):
        gated_kernel[(-(-features // size), -(-batch // _ITEMS))](
            GatedTensors(
                gate,
                up,
                one.left.contiguous(),
                two.left.contiguous(),
                gated.gate.bias,
                gated.up.bias,
                down.right.contiguous(),
                y,
            ),
            shape,
            features,
            SIZE=size,
            TILE=power_of_two(size),
            ITEMS=_ITEMS,
            ACTIVATION=gated.activation,
            OPERAND=operand(dtype),
            num_warps=8 if size > 64 else 4,  # so that two programs have room for their registers
        )
    return y
