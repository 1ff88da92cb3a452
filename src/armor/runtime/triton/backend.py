"""The Triton backend: reads the stored values and 2-bit positions once, nothing is repacked.

A few rows are bound by memory: the input side is split until there are a few programs for each
multiprocessor. Layers with the same input share their launches: B x for all of them, then S and,
by whichever program ends last with a block of outputs, A; for small layers one launch for all.
How the work is cut is decided in `tiles`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from armor.runtime.backend import YES, Verdict
from armor.runtime.semi_structured.compressed import positions
from armor.runtime.triton.tiling import Product, Tiling, tiling
from armor.sparse.layer import PackedLayer

MOST_LAYERS = 3  # that the kernels take in one launch
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Zeros that count finished programs; kernels leave them as zeros. By device, stream (or _CAPTURED)
# and size, and never let go: captured graphs keep their address.
_counters: dict[tuple[torch.device, int, int], Tensor] = {}
_CAPTURED = -1


def is_available() -> Verdict:
    """Triton with a GPU; or interpreted on the CPU with TRITON_INTERPRET=1, for tests."""
    if importlib.util.find_spec("triton") is None:
        return Verdict("triton is not installed: pip install triton")
    if not torch.cuda.is_available() and not _interpreted():
        return Verdict("no GPU")
    return YES


def is_supported(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int
) -> Verdict:
    """float32, bfloat16 and float16, any shape and batch."""
    if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
        return Verdict(f"the tensors are on {device.type}")
    if dtype not in _DTYPES:
        return Verdict(f"{dtype} is none of float32, bfloat16, float16")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return Verdict("the GPU is older than compute capability 8.0")
    return YES


def pack(layer: PackedLayer) -> None:
    """Nothing: the kernels read the stored tensors."""


def matmul(x: Tensor, layer: PackedLayer, bias: Tensor | None, packed: Tensor | None) -> Tensor:
    """See `Backend.matmul`; sums in float32, ``B x`` and ``S B x`` are rounded to x's dtype."""
    return product(x, [layer], [bias], [packed])[0]


def matmul_shared(
    x: Tensor,
    layers: Sequence[PackedLayer],
    biases: Sequence[Tensor | None],
    packed: Sequence[Tensor | None],
) -> list[Tensor]:
    """See `Backend.matmul_shared`: up to three layers a launch."""
    found: list[Tensor] = []
    for start in range(0, len(layers), MOST_LAYERS):
        part = slice(start, start + MOST_LAYERS)
        calls = list(zip(layers[part], biases[part], packed[part], strict=True))
        alike = {(call[0].block, call[1] is None, _is_placed(call[0])) for call in calls}
        if len(alike) == 1:
            found += product(x, layers[part], biases[part], packed[part])
        else:
            found += [matmul(x, *call) for call in calls]
    return found


def product(
    x: Tensor,
    layers: Sequence[PackedLayer],
    biases: Sequence[Tensor | None],
    packed: Sequence[Tensor | None],
    cut: Tiling | None = None,
) -> list[Tensor]:
    """``A S B x + bias`` of layers that are alike: the block size, whether there is a bias, whether
    `core_indices` were let go of because `packed` has them.

    Args:
        x: (batch, in). cut: how to cut the work, None for `tiles.tiling`.
    """
    rows = [layer.shape[0] for layer in layers]
    if cut is None:
        all_rows = sum(rows)
        cut = tiling(Product(all_rows, x.shape[1], layers[0].block, len(x), x.dtype), x.device)
    x = x.contiguous()
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        inputs = x
        rights = [layer.right for layer in layers if layer.right is not None]
        if rights and not cut.fuse_right:
            outputs = x.new_empty(len(layers), *x.shape)
            times_blocks(x, rights, [None] * len(layers), list(outputs))
            inputs = outputs
        if cut.fuse_left:
            results = [x.new_empty(len(x), out) for out in rows]
            _core(inputs, layers, biases, packed, cut, results)
            return results
        sums = _core(inputs, layers, biases, packed, cut, [])
        lefts = [layer.left for layer in layers if layer.left is not None]
        if lefts:
            results = [x.new_empty(len(x), out) for out in rows]
            times_blocks(sums, lefts, biases, results)
            return results
        parts = sums.sum(0).to(x.dtype).split(rows, dim=1)
        return [
            part.contiguous() if bias is None else part + bias
            for part, bias in zip(parts, biases, strict=True)
        ]


def times_blocks(
    x: Tensor,
    blocks: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    results: Sequence[Tensor],
) -> None:
    """``blockdiag(blocks) x + bias`` for up to three layers in one launch, into `results`.

    Args:
        x: (batch, n), the same for all; or (parts, batch, sum of n) to be added first, of which
            each layer takes its n in turn.
        blocks: (count, b, b) with (count - 1)*b < n <= count*b, one b. biases: (n,), all or none.
        results: contiguous, (batch, n).
    """
    from armor.runtime.triton import kernels

    together = x.dim() == 2
    parts, batch, width = (1, *x.shape) if together else tuple(x.shape)
    size = blocks[0].shape[-1]
    rows = min(64, kernels.power_of_two(size))
    items = min(64, kernels.power_of_two(batch))
    features = [result.shape[-1] for result in results]
    ends = list(accumulate(len(factor) * -(-size // rows) for factor in blocks))
    offsets = [0] * len(blocks) if together else [0, *accumulate(features)][: len(blocks)]
    kernels.blocks_kernel[(ends[-1], -(-batch // items))](
        x,
        *_three(blocks),
        *_three([x if bias is None else bias for bias in biases]),
        *_three(results),
        parts,
        batch * width,
        batch,
        width,
        *_three(ends)[:2],
        *_three(features),
        *_three(offsets)[1:],
        LAYERS=len(blocks),
        SIZE=size,
        ROWS=rows,
        ITEMS=items,
        STEP=min(64, kernels.power_of_two(size)),
        BIAS=biases[0] is not None,
        OPERAND=kernels.operand(blocks[0].dtype),
    )


def _core(
    x: Tensor,
    layers: Sequence[PackedLayer],
    biases: Sequence[Tensor | None],
    packed: Sequence[Tensor | None],
    cut: Tiling,
    results: Sequence[Tensor],
) -> Tensor:
    """The core's launch, into `results` if A is fused; returns the sums (parts, batch, all rows).

    x is (batch, in), or what each layer's B made of it: (layers, batch, in).
    """
    from armor.runtime.triton import kernels

    batch, features = x.shape[-2:]
    rows = [layer.shape[0] for layer in layers]
    block = layers[0].block or 0
    groups = layers[0].core_values.shape[1] // 2
    step = block // 4 if cut.fuse_right else cut.groups
    items = min(64, kernels.power_of_two(batch))
    ends = list(accumulate(-(-out // cut.rows) for out in rows))
    tiles, columns = ends[-1], -(-batch // items)
    steps = -(-groups // step)
    wanted = cut.programs * _processors(x.device) // (tiles * columns)
    each = -(-steps // min(steps, max(1, wanted)))
    parts = -(-steps // each)
    sums = torch.empty(parts, batch, sum(rows), dtype=torch.float32, device=x.device)
    pairs = x.element_size() == 2
    values = [layer.core_values.contiguous() for layer in layers]
    indices = [layer.core_indices.contiguous() for layer in layers]
    rows_at = columns_at = indices
    placed = _is_placed(layers[0])
    if placed:
        pairs_of = zip(layers, packed, strict=True)
        told = [positions(layer, tensor) for layer, tensor in pairs_of if tensor is not None]
        indices = [found[0] for found in told if found is not None]
        rows_at = [found[1].rows for found in told if found is not None]
        columns_at = [found[1].columns for found in told if found is not None]
    kernels.core_kernel[(tiles, parts, columns)](
        x,
        *_three([v.view(torch.int32) if pairs else v for v in values]),
        *_three(indices),
        *_three(rows_at),
        *_three(columns_at),
        *_three([_or(layer.left, x) for layer in layers]),
        *_three([_or(layer.right, x) for layer in layers]),
        *_three([_or(bias, x) for bias in biases]),
        *_three(results or [x]),
        sums,
        _zeros(x.device, tiles * columns) if cut.fuse_left else sums,
        parts,
        each,
        batch,
        features,
        groups,
        -(-groups // 2),
        batch * features if x.dim() == 3 else 0,
        *_three(ends)[:2],
        tiles,
        *_three(rows),
        sum(rows),
        LAYERS=len(layers),
        LEFT=block if cut.fuse_left else 0,
        RIGHT=block if cut.fuse_right else 0,
        BIAS=biases[0] is not None,
        ROWS=cut.rows,
        ITEMS=items,
        GROUPS=step,
        PAIRS=pairs,
        PLACED=placed,
        EVEN=all(out % cut.rows == 0 for out in rows) and groups % (step * each) == 0,
        STAGES=cut.stages,
        TYPE=kernels.stored(x.dtype),
        OPERAND=kernels.operand(x.dtype),
        num_warps=cut.warps,
    )
    return sums


def _is_placed(layer: PackedLayer) -> bool:
    """Whether its positions are in the packed tensor only."""
    return not layer.core_indices.numel()


def _three(things: Sequence[Any]) -> list[Any]:
    """What is passed for each layer, three times; nothing is read of those that are too many."""
    return [*things, *[things[0]] * (MOST_LAYERS - len(things))]


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """The tensor, or something to pass in its place where nothing is read."""
    return other if tensor is None else tensor.contiguous()


def _zeros(device: torch.device, count: int) -> Tensor:
    """`count` or more zeros for a launch on the current stream.

    What is allocated during a capture is zero only once that graph has run. So the counters of
    captured graphs are made by the call that warms up, and graphs must take turns.
    """
    stream, capturing = 0, False
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device).cuda_stream
        capturing = torch.cuda.is_current_stream_capturing()
    size = max(4096, 1 << (count - 1).bit_length())
    owners = [_CAPTURED] if capturing else [_CAPTURED, stream]
    for owner in owners:
        if (device, owner, size) not in _counters:
            zeros = torch.zeros(size, dtype=torch.int32, device=device)
            _counters[device, owner, size] = zeros
    return _counters[device, owners[-1], size]


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
