"""The Triton backend: reads the stored values or codes, and 2-bit positions, once; nothing is
repacked.

A few rows are bound by memory: the input side is split until there are a few programs for each
multiprocessor. Layers with the same input share their launches: B x for all of them, then S and,
by whichever program ends last with a block of outputs, A; for small layers one launch for all.
How the work is cut is decided in `tiling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from armor.runtime.backend import YES, Call, Verdict
from armor.runtime.gated import Gated
from armor.runtime.guard import on_device
from armor.runtime.triton.arguments import BlockTensors, CoreTensors, Inputs, Sums
from armor.runtime.triton.gated import between_cores
from armor.runtime.triton.gated import takes_gated as takes_gated
from armor.runtime.triton.tiling import SMALLEST_TILE, Product, Tiling, by_rule, choose_tiling
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import SCALE_GROUP
from armor.sparse.pattern import TWO_OF_FOUR, Pattern
from armor.triton import is_interpreted, why_no_triton

T = TypeVar("T")

MOST_LAYERS = 3  # that the kernels take in one launch
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Zeros that count finished programs; kernels leave zeros. For each device a row for captured
# graphs, which must take turns, and one for each stream; never freed: graphs keep their address.
_counters: dict[torch.device, list[Tensor]] = {}
_streams: dict[tuple[torch.device, int], int] = {}
_ROWS = 128  # more than torch has streams
_FEWEST = 4096  # counters in a row


def is_available() -> Verdict:
    """Triton with a GPU; or interpreted on the CPU with TRITON_INTERPRET=1, for tests."""
    if reason := why_no_triton():
        return Verdict(reason)
    return YES if torch.cuda.is_available() or is_interpreted() else Verdict("no GPU")


def is_supported(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int, pattern: Pattern
) -> Verdict:
    """2:4 in float32, bfloat16 and float16, or in codes, any shape and batch."""
    if device.type != "cuda" and not (device.type == "cpu" and is_interpreted()):
        return Verdict(f"the tensors are on {device.type}")
    if dtype not in _DTYPES:
        return Verdict(f"{dtype} is none of float32, bfloat16, float16")
    if pattern != TWO_OF_FOUR:
        return Verdict(f"its kernels compute 2:4 only, not {pattern}")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return Verdict("the GPU is older than compute capability 8.0")
    return YES


def prepare(layer: PackedLayer) -> None:
    """No other form: the kernels read the stored tensors.

    But their counters are made: made by a first call, they could lie in memory of a graph that is
    about to be recorded, which is used for other things when that graph is gone.
    """
    device = layer.core_values.device
    tiles = -(-layer.shape[0] // SMALLEST_TILE)
    _counters_of(device, MOST_LAYERS * tiles)


def matmul(x: Float[Tensor, "batch in"], call: Call) -> Float[Tensor, "batch out"]:
    """See `Backend.matmul`; sums in float32, ``B x`` and ``S B x`` are rounded to x's dtype."""
    return product(x, [call])[0]


def matmul_shared(
    x: Float[Tensor, "batch in"], calls: Sequence[Call]
) -> list[Float[Tensor, "batch _"]]:
    """See `Backend.matmul_shared`: up to three layers that are alike a launch."""
    found: dict[int, Tensor] = {}
    for some in launches(calls, _kind):
        found.update(zip(some, product(x, [calls[place] for place in some]), strict=True))
    return [found[place] for place in range(len(calls))]


def launches(layers: Sequence[T], kind: Callable[[T], object]) -> list[list[int]]:
    """The places of layers in groups of one `kind`, each as many as the kernels take."""
    places: dict[object, list[int]] = {}
    for place, layer in enumerate(layers):
        places.setdefault(kind(layer), []).append(place)
    return [
        one[start : start + MOST_LAYERS]
        for one in places.values()
        for start in range(0, len(one), MOST_LAYERS)
    ]


def product(
    x: Float[Tensor, "batch in"], calls: Sequence[Call], tiling: Tiling | None = None
) -> list[Float[Tensor, "batch _"]]:
    """``A S B x + bias`` of layers that are alike, see `_kind`.

    Args:
        tiling: how to cut the work, None for `choose_tiling`.
    """
    layers = [call.layer for call in calls]
    biases = [call.bias for call in calls]
    rows = [layer.shape[0] for layer in layers]
    if tiling is None:
        tiling = _tiling(x, layers)
    x = x.contiguous()
    with on_device(x.device):
        inputs = _times_rights(x, layers, tiling)
        if tiling.fuse_left:
            results = [x.new_empty(len(x), out) for out in rows]
            _launch_core(inputs, calls, tiling, results)
            return results
        sums = _launch_core(inputs, calls, tiling, None)
        lefts = [layer.left for layer in layers if layer.left is not None]
        if lefts:
            results = [x.new_empty(len(x), out) for out in rows]
            times_blocks(sums, lefts, biases, results, [layer.left_scales for layer in layers])
            return results
        parts = sums.sum(0).to(x.dtype).split(rows, dim=1)
        return [
            part.contiguous() if bias is None else part + bias
            for part, bias in zip(parts, biases, strict=True)
        ]


def matmul_gated(x: Float[Tensor, "batch in"], gated: Gated) -> Float[Tensor, "batch out"]:
    """See `Gating.matmul_gated`: `between_cores` in the place of four passes."""
    pair = [gated.gate, gated.up]
    layers = [call.layer for call in pair]
    tiling = replace(_tiling(x, layers), fuse_left=False)
    x = x.contiguous()
    with on_device(x.device):
        sums = _launch_core(_times_rights(x, layers, tiling), pair, tiling, None)
    gate, up = sums.split([layer.shape[0] for layer in layers], dim=2)
    inner = between_cores(gate, up, gated, x.dtype)
    down = gated.down
    return matmul(inner, down._replace(layer=replace(down.layer, right=None)))


def _tiling(x: Tensor, layers: Sequence[PackedLayer]) -> Tiling:
    """Measured, or by rule, as for cores in codes; B is no part of a launch where there is none."""
    rows = sum(layer.shape[0] for layer in layers)
    whole = Product(rows, x.shape[1], layers[0].block, len(x), x.dtype)
    tiling = choose_tiling(whole, x.device) if layers[0].core is None else by_rule(whole)
    if layers[0].right is None and tiling.fuse_right:
        return Tiling(fuse_left=tiling.fuse_left)  # the other sizes are for B in the launch, too
    return tiling


def _times_rights(x: Tensor, layers: Sequence[PackedLayer], tiling: Tiling) -> Tensor:
    """What the core multiplies: B x for each of the layers, or x if B is fused or there is none."""
    rights = [layer.right for layer in layers if layer.right is not None]
    if not rights or tiling.fuse_right:
        return x
    inputs = x.new_empty(len(layers), *x.shape)
    scales = [layer.right_scales for layer in layers]
    times_blocks(x, rights, [None] * len(layers), list(inputs), scales)
    return inputs


def times_blocks(
    x: Float[Tensor, "batch in"] | Float[Tensor, "parts batch all"],
    blocks: Sequence[Shaped[Tensor, "_ b b"]],
    biases: Sequence[Float[Tensor, " _"] | None],
    results: Sequence[Float[Tensor, "batch _"]],
    scales: Sequence[Float[Tensor, "_ b"] | None] = (),
) -> None:
    """``blockdiag(blocks) x + bias`` for up to three layers in one launch, into `results`.

    Args:
        x: the same for all; or parts to be added first, of which each layer takes its columns in
            turn.
        blocks: (count, b, b) with (count - 1)*b < n <= count*b, one b. biases: (n,), all or none.
        results: contiguous, (batch, n). scales: of the rows of blocks of codes, all or none.
    """
    from armor.runtime.triton.blocks_kernel import blocks_kernel
    from armor.runtime.triton.device_functions import operand, power_of_two

    is_one_input = x.dim() == 2
    shape = Sums(1, *x.shape) if is_one_input else Sums(*x.shape)
    size = blocks[0].shape[-1]
    is_wide = results[0].element_size() > 2  # float32: fewer numbers in the registers of a thread
    items = min(32 if is_wide else 64, power_of_two(shape.batch))
    # Many rows are bound by what the caches hand out: a block whole, so that they are read once.
    whole = items == 64 < size <= 128
    rows = 128 if whole else min(64, power_of_two(size))
    features = [result.shape[-1] for result in results]
    first_tile, tiles = _offsets(len(factor) * -(-size // rows) for factor in blocks)
    layers = BlockTensors(
        blocks=tuple(factor.contiguous() for factor in blocks),
        scales=_all_or_none(scales),
        bias=_all_or_none(biases),
        y=tuple(results),
        features=tuple(features),
        first_tile=first_tile,
        first_feature=(0,) * len(blocks) if is_one_input else _offsets(features)[0],
    )
    with on_device(x.device):
        blocks_kernel[(tiles, -(-shape.batch // items))](
            x,
            layers,
            shape,
            SIZE=size,
            ROWS=rows,
            ITEMS=items,
            STEP=min(rows, 16) if is_wide else rows,
            OPERAND=operand(results[0].dtype),
            num_warps=8 if whole or is_wide else 4,
        )


def _launch_core(
    x: Tensor, calls: Sequence[Call], tiling: Tiling, results: Sequence[Tensor] | None
) -> Float[Tensor, "parts batch all"]:
    """The core's launch; returns the sums, with the rows of all layers.

    Args:
        x: (batch, in), or what each layer's B made of it: (layers, batch, in).
        results: (batch, out) for each layer, written if A is fused.
    """
    from armor.runtime.triton.core_kernel import core_kernel
    from armor.runtime.triton.device_functions import operand, power_of_two

    batch, features = x.shape[-2:]
    layers = [call.layer for call in calls]
    rows = [layer.shape[0] for layer in layers]
    block = layers[0].block or 0
    groups = layers[0].kept // 2
    core = layers[0].core
    scales = 0 if layers[0].core_scales is None else layers[0].core_scales.shape[1]
    step = block // 4 if tiling.fuse_right else tiling.groups
    if core is not None:
        step = min(step, SCALE_GROUP // 2)
    items = min(64, power_of_two(batch))
    first_tile, tiles = _offsets(-(-out // tiling.rows) for out in rows)
    first_row, width = _offsets(rows)
    columns = -(-batch // items)
    steps = -(-groups // step)
    wanted = tiling.programs * _processors(x.device) // (tiles * columns)
    steps_each = -(-steps // min(steps, max(1, wanted)))
    parts = -(-steps // steps_each)
    sums = torch.empty(parts, batch, width, dtype=torch.float32, device=x.device)
    values = [layer.core_values.contiguous() for layer in layers]
    if x.element_size() == 2 and core is None:
        values = [each.view(torch.int32) for each in values]
    tensors = CoreTensors(
        core_values=tuple(values),
        core_indices=tuple(layer.core_indices.contiguous() for layer in layers),
        core_scales=_all_or_none([layer.core_scales for layer in layers]),
        left=_all_or_none([layer.left for layer in layers]) if tiling.fuse_left else None,
        left_scales=_all_or_none([layer.left_scales for layer in layers]),
        right=_all_or_none([layer.right for layer in layers]) if tiling.fuse_right else None,
        right_scales=_all_or_none([layer.right_scales for layer in layers]),
        bias=_all_or_none([call.bias for call in calls]) if tiling.fuse_left else None,
        y=None if results is None else tuple(results),
        rows=tuple(rows),
        first_tile=first_tile,
        first_row=first_row,
    )
    x_stride = batch * features if x.dim() == 3 else 0
    core_kernel[(tiles, parts, columns)](
        x,
        tensors,
        Inputs(
            features,
            groups,
            index_bytes=-(-groups // 2),
            row_values=values[0].shape[1],
            scales=scales,
            x_stride=x_stride,
            steps=steps_each,
        ),
        sums,
        Sums(parts, batch, width),
        _zeroed_counters(x.device, tiles * columns) if tiling.fuse_left else None,
        LEFT=block if tiling.fuse_left else 0,
        RIGHT=block if tiling.fuse_right else 0,
        ROWS=tiling.rows,
        ITEMS=items,
        GROUPS=step,
        EVEN=all(out % tiling.rows == 0 for out in rows) and groups % (step * steps_each) == 0,
        STAGES=tiling.stages,
        OPERAND=operand(x.dtype),
        CORE=core,
        num_warps=tiling.warps,
        **_registers(items, tiling.warps),
    )
    return sums


def _registers(items: int, warps: int) -> dict[str, int]:
    """What a thread may take, for compilers that are told.

    Left to itself NVIDIA's counts on more programs of a processor than there are, and spills. With
    few items three programs must fit: 3 * 128 threads * 168 registers. Most kernels take fewer than
    128, so that four do.
    """
    if torch.version.hip is not None:
        return {}
    return {"maxnreg": 168 if (items, warps) == (SMALLEST_TILE, 4) else 255}


def _kind(call: Call) -> tuple[object, ...]:
    """What layers of one launch have in common."""
    layer = call.layer
    return layer.block, call.bias is None, layer.core, layer.left_scales is None


def _offsets(sizes: Iterable[int]) -> tuple[tuple[int, ...], int]:
    """Where each of several neighbours of these sizes begins, and where the last ends."""
    *starts, end = accumulate(sizes, initial=0)
    return tuple(starts), end


def _all_or_none(tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...] | None:
    """The tensors, contiguous; None if there are none."""
    found = tuple(tensor.contiguous() for tensor in tensors if tensor is not None)
    return found or None


def _zeroed_counters(device: torch.device, count: int) -> Tensor:
    """`count` or more zeros for a launch on the current stream."""
    row = 0
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        stream = torch.cuda.current_stream(device).cuda_stream
        row = 1 + _streams.setdefault((device, stream), len(_streams)) % (_ROWS - 1)
    return _counters_of(device, count)[row]


def _counters_of(device: torch.device, count: int) -> Tensor:
    """int32 (_ROWS, `count` or more)."""
    held = _counters.setdefault(device, [])
    if not held or held[-1].shape[1] < count:
        size = max(_FEWEST, 1 << (count - 1).bit_length())
        held.append(torch.zeros(_ROWS, size, dtype=torch.int32, device=device))
    return held[-1]


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
