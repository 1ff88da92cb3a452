"""The float8 backend: fp8 cores on 2:4 tensor cores of 8-bit floats, by cuSPARSELt through torch.

It rounds the inputs of the core to 8-bit floats, too, with a scale for each row of them, which no
other backend does: so it computes only when it is asked for (`armor.runtime.use`, ARMOR_BACKEND).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from armor.runtime import reference
from armor.runtime.backend import YES, Call, Verdict
from armor.runtime.guard import on_device
from armor.runtime.semi_structured.compressed import (
    engine_of,
    padded,
    padded_shape,
    use_cusparselt,
)
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import FP8
from armor.sparse.pack import unpack
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

_ENGINE = "float8"  # whose multiples shapes are padded to
_ROW_MULTIPLE = 16  # rows of input are padded to it
_OLDEST = 602  # version of cuSPARSELt
_FP8 = torch.float8_e4m3fn
_ONE = 0b0_0111_000  # 1.0


def is_available() -> Verdict:
    """Needs an NVIDIA GPU from compute capability 8.9 on, and a cuSPARSELt for 8-bit floats."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return Verdict("no NVIDIA GPU")
    return _found(torch.device("cuda"))


def is_supported(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int, pattern: Pattern
) -> Verdict:
    """2:4 with an fp8 core in bfloat16 and float16 on CUDA; shapes and batches are padded."""
    if device.type != "cuda":
        return Verdict(f"the tensors are on {device.type}")
    if pattern != TWO_OF_FOUR:
        return Verdict(f"the hardware computes 2:4 only, not {pattern}")
    if dtype not in (torch.bfloat16, torch.float16):
        return Verdict(f"{dtype} is neither bfloat16 nor float16")
    return _found(device)


def _found(device: torch.device) -> Verdict:
    if torch.cuda.get_device_capability(device) < (8, 9):
        return Verdict("the GPU is older than compute capability 8.9")
    version = torch.backends.cusparselt.version() or 0
    if engine_of(device) != "cusparselt" or version < _OLDEST:
        return Verdict("torch has no cuSPARSELt here that multiplies 8-bit floats (0.6.2 or later)")
    return YES


def prepare(layer: PackedLayer) -> Tensor | None:
    """``[codes | positions]``, flat, uint8; this one layer is unpacked for a moment.

    None if the codes are in another order or padded: the layer would take twice the memory.
    """
    with on_device(layer.core_values.device):
        compressed = compress(layer)
    codes = layer.core_values.flatten()
    return compressed if torch.equal(compressed[: codes.numel()], codes) else None


def compress(layer: PackedLayer) -> UInt8[Tensor, " compressed"]:
    """What cuSPARSELt computes from, as bytes."""
    codes, indices = padded(layer, _ENGINE)
    cols = 2 * codes.shape[1]
    use_cusparselt(codes.device)

    def compressed(of: Tensor) -> Tensor:
        return (
            torch._cslt_compress(unpack(of, indices, cols).view(_FP8)).view(torch.uint8).flatten()
        )

    # A kept 0 would be taken for a dropped one, and its position lost.
    marked = torch.where(codes & 127 == 0, _ONE, codes)
    found = compressed(marked)
    head = found[: codes.numel()]
    if not torch.equal(head, marked.flatten()):
        # A version with another order of the codes: correct, but they cannot be held once.
        return compressed(codes)
    head.copy_(codes.flatten())
    return found


def matmul(x: Float[Tensor, "batch in"], call: Call) -> Float[Tensor, "batch out"]:
    """See `Backend.matmul`; S times codes is summed in float32 and rounded to bfloat16."""
    layer = call.layer
    left, right = reference.plain_wrappers(layer)
    with on_device(x.device):
        prepared = compress(layer) if call.prepared is None else call.prepared
        inputs = x if right is None else reference.times_blocks(x, right)
        y = _times_core(inputs.float(), layer, prepared).to(x.dtype)
        y = y if left is None else reference.times_blocks(y, left)
        return (y if call.bias is None else y + call.bias).contiguous()


def rounded_inputs(
    x: Float[Tensor, "batch in"],
) -> tuple[Float[Tensor, "batch in"], Float[Tensor, "batch 1"]]:
    """Each row over its scale, which takes its largest to the largest 8-bit float; the scales."""
    scales = x.abs().amax(1, keepdim=True) / FP8.largest
    scales = scales.clamp_min(torch.finfo(x.dtype).tiny)
    return (x / scales).clamp(FP8.lowest, FP8.highest), scales


def _times_core(
    x: Float[Tensor, "batch in"], layer: PackedLayer, compressed: UInt8[Tensor, " compressed"]
) -> Float[Tensor, "batch out"]:
    """``S x`` in float32."""
    assert layer.core_scales is not None
    rows, cols = padded_shape(layer.shape, _ENGINE)
    inputs, scales = rounded_inputs(x)
    padding = (0, cols - x.shape[1], 0, -len(x) % _ROW_MULTIPLE)
    codes = functional.pad(inputs, padding).to(_FP8)
    use_cusparselt(x.device)
    y = _product(compressed.view(rows, -1).view(_FP8), codes)
    return y[: len(x), : layer.shape[0]].float() * scales * layer.core_scales.float().T


def _product(compressed: Tensor, codes: Tensor) -> Float[Tensor, "items rows"]:
    # By place: the name of the last argument differs between the versions of torch.
    return torch._cslt_sparse_mm(compressed, codes.t(), None, None, torch.bfloat16, True)
