"""The semi_structured backend: 2:4 tensor cores through torch, for prefill and batched work.

cuSPARSELt where torch has it, else CUTLASS, whose 2:4 kernels are for compute capability 8.x; what
both compute from is described in `compressed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from armor.runtime import reference
from armor.runtime.backend import YES, Call, Verdict
from armor.runtime.gated import Gated
from armor.runtime.guard import on_device
from armor.runtime.semi_structured.compressed import (
    compress,
    engine_of,
    padded_shape,
    use_cusparselt,
)
from armor.runtime.triton import backend as triton
from armor.runtime.triton.gated import between_cores
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

_ROW_MULTIPLE = 8  # rows of input are padded to it
_NO_ENGINE = (
    "torch has no cuSPARSELt here, or uses it on another GPU in this thread (CUTLASS's 2:4 kernels"
    " are for compute capability 8.x only)"
)

# The fastest algorithm of cuSPARSELt by (device, out, in, input rows up to a power of two, dtype):
# the last arguments of its product, which are its number and how the inputs are split. Empty: the
# default one.
_algorithms: dict[tuple[Any, ...], tuple[int, ...]] = {}


def is_available() -> Verdict:
    """Needs an NVIDIA GPU from compute capability 8.0 on, and cuSPARSELt or CUTLASS for it."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return Verdict("no NVIDIA GPU")
    return YES if engine_of(torch.device("cuda")) else Verdict(_NO_ENGINE)


def is_supported(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int, pattern: Pattern
) -> Verdict:
    """2:4 in bfloat16 and float16 on CUDA; shapes and batches are padded where needed."""
    if device.type != "cuda":
        return Verdict(f"the tensors are on {device.type}")
    if pattern != TWO_OF_FOUR:
        return Verdict(f"the hardware computes 2:4 only, not {pattern}")
    if dtype not in (torch.bfloat16, torch.float16):
        return Verdict(f"{dtype} is neither bfloat16 nor float16")
    return YES if engine_of(device) else Verdict(_NO_ENGINE)


def prepare(layer: PackedLayer) -> Tensor | None:
    """``[values | positions]``, flat; with cuSPARSELt this one layer is unpacked for a moment.

    None if the values are in another order or padded: the layer would take twice the memory.
    """
    with on_device(layer.core_values.device):
        compressed = compress(layer)
    values = layer.core_values.flatten()
    return compressed if torch.equal(compressed[: values.numel()], values) else None


def matmul(x: Float[Tensor, "batch in"], call: Call) -> Float[Tensor, "batch out"]:
    """See `Backend.matmul`; sums of S in float32, rounded to x's dtype between the factors."""
    layer, bias, _, _ = call
    with on_device(x.device):
        if layer.right is not None:
            x = _times_blocks(x, layer.right, None)
        y = _times_core(x, call)
        if layer.left is not None:
            return _times_blocks(y, layer.left, bias)
        return (y if bias is None else y + bias).contiguous()


def matmul_shared(
    x: Float[Tensor, "batch in"], calls: Sequence[Call]
) -> list[Float[Tensor, "batch _"]]:
    """See `Backend.matmul_shared`: the products with B are one launch for three layers of one
    block."""
    return [matmul(each, call) for each, call in _times_rights(x, calls)]


def takes_gated(gated: Gated) -> Verdict:
    """See `Gating.takes_gated`: with Triton, for the launch between the cores."""
    return triton.is_available() and triton.takes_gated(gated)


def matmul_gated(x: Float[Tensor, "batch in"], gated: Gated) -> Float[Tensor, "batch out"]:
    """See `Gating.matmul_gated`: one pass between the cores."""
    with on_device(x.device):
        inputs = _times_rights(x, [gated.gate, gated.up])
        gate, up = (_times_core(each, call) for each, call in inputs)
        inner = between_cores(gate, up, gated, x.dtype)
        return matmul(inner, _without_right(gated.down))


def _times_rights(x: Tensor, calls: Sequence[Call]) -> list[tuple[Tensor, Call]]:
    """For each layer its inputs and what is left to do: B x is one launch for all of one block."""
    left = [(x, call) for call in calls]
    if not triton.is_available():
        return left
    x = x.contiguous()
    for some in triton.launches(calls, lambda call: call.layer.block):
        rights = [right for place in some if (right := calls[place].layer.right) is not None]
        if not rights:
            continue
        inputs = list(x.new_empty(len(some), *x.shape))
        triton.times_blocks(x, rights, [None] * len(some), inputs)
        for place, ready in zip(some, inputs, strict=True):
            left[place] = ready, _without_right(calls[place])
    return left


def _without_right(call: Call) -> Call:
    return call._replace(layer=replace(call.layer, right=None))


def _times_core(x: Float[Tensor, "batch in"], call: Call) -> Float[Tensor, "batch out"]:
    """``S x``."""
    layer = call.layer
    compressed = compress(layer) if call.prepared is None else call.prepared
    engine = engine_of(x.device)
    assert engine is not None
    rows, cols = padded_shape(layer.shape, engine)
    batch = len(x)
    padding = (0, cols - x.shape[1], 0, -batch % _ROW_MULTIPLE)
    x = functional.pad(x, padding) if any(padding) else x.contiguous()  # without any it copies
    if engine == "cutlass":
        kept = rows * cols // 2
        values = compressed[:kept].view(rows, cols // 2)
        positions = compressed[kept:].view(torch.int16).view(rows, cols // 16)
        y = torch._sparse_semi_structured_mm(values, positions, x.t()).t()
    else:
        use_cusparselt(x.device)
        y = _times_compressed(compressed.view(rows, -1), x)
    return y[:batch, : layer.shape[0]]


def _times_compressed(
    compressed: Shaped[Tensor, "rows each"], x: Float[Tensor, "items cols"]
) -> Float[Tensor, "items rows"]:
    """``S x`` by cuSPARSELt, which takes the number of outputs from the compressed form."""
    items = 1 << (len(x) - 1).bit_length()
    key = (x.device, len(compressed), x.shape[1], items, x.dtype)
    if key not in _algorithms and not torch.cuda.is_current_stream_capturing():
        _algorithms[key] = _search(compressed, x)  # times kernels, which a graph cannot record
    algorithm = _algorithms.get(key, ())
    try:
        return _cusparselt(compressed, x, algorithm)
    except RuntimeError:
        if not algorithm:
            raise
        _algorithms[key] = ()  # one that was found for other numbers of rows may not fit these
        return _cusparselt(compressed, x, ())


def _cusparselt(compressed: Tensor, x: Tensor, algorithm: tuple[int, ...]) -> Tensor:
    # By place: the name of the last argument differs between the versions of torch.
    y = torch._cslt_sparse_mm(compressed, x.t(), None, None, None, True, *algorithm)
    return y.view(len(x), len(compressed))


def _search(compressed: Tensor, x: Tensor) -> tuple[int, ...]:
    """The arguments of the fastest algorithm; none where the search fails."""
    library: Any = getattr(torch._C, "_cusparselt", None)
    try:
        if hasattr(library, "mm_search"):
            return tuple(library.mm_search(compressed, x.t(), None, None, None, True)[:3])
        return (torch._cslt_sparse_mm_search(compressed, x.t(), transpose_result=True),)
    except (RuntimeError, TypeError):  # TypeError: it takes other arguments in this version
        return ()


def _times_blocks(x: Tensor, factor: Tensor, bias: Tensor | None) -> Tensor:
    if triton.is_available():
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        triton.times_blocks(x.contiguous(), [factor], [bias], [result])
        return result
    y = reference.times_blocks(x, factor)
    return y if bias is None else y + bias
