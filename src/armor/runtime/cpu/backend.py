"""The CPU backend: Numba kernels on the stored tensors; nothing is repacked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from numba import config, set_num_threads
from torch import Tensor
from torch.nn import functional

from armor.runtime.backend import YES, Call, Verdict
from armor.runtime.cpu import (
    any_pattern_kernels,
    bfloat16_kernels,
    choice,
    rounded,
    tasks,
    two_of_four_kernels,
)
from armor.runtime.cpu.any_pattern_kernels import COLUMNS
from armor.runtime.cpu.arrays import VIEWS, as_array, core_arrays
from armor.runtime.reference import plain_wrappers, times_blocks
from armor.simd.processor import has_float16
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

_SERIAL_PRODUCTS = 2**18  # products up to which one thread is done before others have started
_PANEL_BYTES = 4 * 2**20  # of one unpacked panel: fits into the second or third level cache

#: Whatever the process takes by default.
_FLOAT32: Any = {"dtype": torch.float32, "device": "cpu"}


def is_available() -> Verdict:
    """Needs a little-endian machine: 4 or 8 bytes of indices are read as one number."""
    if sys.byteorder != "little":
        return Verdict("the machine is big-endian")
    return YES


def is_supported(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, batch: int, pattern: Pattern
) -> Verdict:
    """float32, bfloat16 and float16 on the CPU, any shape, batch and pattern."""
    if device.type != "cpu":
        return Verdict(f"the tensors are on {device.type}")
    if dtype not in VIEWS:
        return Verdict(f"{dtype} is none of float32, bfloat16, float16")
    if dtype == torch.float16 and not has_float16():
        return Verdict("the processor does not convert float16 (no F16C)")
    return YES


def prepare(layer: PackedLayer) -> None:
    """Nothing: the kernels read the stored tensors."""


def matmul(x: Float[Tensor, "batch in"], call: Call) -> Float[Tensor, "batch out"]:
    """See `Backend.matmul`; sums in float32."""
    return matmul_shared(x, [call])[0]


def matmul_shared(
    x: Float[Tensor, "batch in"], calls: Sequence[Call]
) -> list[Float[Tensor, "batch _"]]:
    """See `Sharing.matmul_shared`: one start of the threads for all."""
    kinds = {tasks.kind_of(call.layer) for call in calls}
    if len(kinds) > 1:
        return [matmul(x, call) for call in calls]
    named = rounded.kernel_of if "codes" in kinds else kernel_of
    kernel = named(x.dtype, len(x))
    if kernel in tasks.TASKS:
        return tasks.run(kernel, x, calls)
    return [_run(kernel, x, call) for call in calls]


def kernel_of(dtype: torch.dtype, batch: int) -> str:
    """The kernel that computes so many rows of input, see `armor.runtime.cpu.choice`."""
    return choice.kernel_of(dtype, batch, _run_layer)


def _run_layer(kernel: str, x: Tensor, layer: PackedLayer) -> Tensor:
    return _run(kernel, x, Call(layer))


def _run(kernel: str, x: Tensor, call: Call) -> Tensor:
    if kernel in tasks.TASKS:
        return tasks.run(kernel, x, [call])[0]
    product = _PRODUCTS[kernel]
    _use_threads(call.layer.core_values.numel() * len(x) <= _SERIAL_PRODUCTS)
    y = product(x, call.layer)
    return y if call.bias is None else y.add_(call.bias)


def _use_threads(one: bool) -> None:
    """Numba's number of threads for the next kernel: one, or as many as torch has."""
    settings: Any = config  # its attributes are made on import
    threads = torch.get_num_threads()
    set_num_threads(1 if one else min(threads, settings.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:
        # Numba, starting its threads, sets OpenMP's number, too. vLLM replaces the public function.
        torch._C.set_num_threads(threads)


def _packed_product_bfloat16(x: Tensor, layer: PackedLayer) -> Tensor:
    """With the processor's instructions for bfloat16, rounded to it between the factors."""
    left, right = plain_wrappers(layer)
    if right is not None:
        x = _times_blocks_bfloat16(x, right)
    batch, cols = x.shape
    x = functional.pad(x, (0, -cols % COLUMNS, 0, -batch % bfloat16_kernels.TILE))
    y = torch.empty(layer.shape[0], len(x), **_FLOAT32)
    if layer.core_scales is not None:
        rounded.core_product_bfloat16(layer, x, y)
    elif layer.pattern == TWO_OF_FOUR:
        values, indices = as_array(layer.core_values), as_array(layer.core_indices)
        bfloat16_kernels.core_product(values, indices, as_array(x), y.numpy())
    else:
        any_pattern_kernels.core_product(*core_arrays(layer), as_array(x), y.numpy())
    y = y.T[:batch].to(x.dtype, memory_format=torch.contiguous_format)
    return y if left is None else _times_blocks_bfloat16(y, left)


def _unpacked_product(x: Tensor, layer: PackedLayer) -> Tensor:
    """Panels of rows of S, unpacked one at a time into the same scratch, times x by BLAS."""
    left, right = plain_wrappers(layer)
    if right is not None:
        x = times_blocks(x, right)
    unpack, width = _unpacker(layer)
    x = functional.pad(x, (0, width - x.shape[1]))
    rows, _ = layer.shape
    height = min(rows, max(1, _PANEL_BYTES // (width * x.element_size())))
    panel = x.new_empty(height, width)
    y = x.new_empty(len(x), rows)
    for start in range(0, rows, height):
        stop = min(rows, start + height)
        unpack(start, stop, panel)
        y[:, start:stop] = x @ panel[: stop - start].T
    return y if left is None else times_blocks(y, left)


def _unpacker(layer: PackedLayer) -> tuple[Callable[[int, int, Tensor], None], int]:
    """What unpacks rows start .. stop-1 of S into a panel, and how wide that is."""
    if layer.core_scales is not None:
        return rounded.unpacker(layer)
    if layer.pattern != TWO_OF_FOUR:
        core = core_arrays(layer)

        def expand(start: int, stop: int, panel: Tensor) -> None:
            any_pattern_kernels.unpack_rows(*core, start, stop, as_array(panel))

        return expand, layer.in_features + -layer.in_features % COLUMNS
    values, indices = layer.core_values.detach().contiguous(), as_array(layer.core_indices)
    narrow = values.element_size() == 2
    source = (values.view(torch.uint16) if narrow else values).numpy()

    def unpack(start: int, stop: int, panel: Tensor) -> None:
        if narrow:
            target = panel.view(torch.uint64).numpy()
            two_of_four_kernels.unpack_rows16(source, indices, start, stop, target)
        else:
            two_of_four_kernels.unpack_rows32(source, indices, start, stop, panel.numpy())

    return unpack, 2 * values.shape[1]


def _times_blocks_bfloat16(x: Tensor, blocks: Tensor) -> Tensor:
    count, size, _ = blocks.shape
    if size % 32:
        return times_blocks(x, blocks)
    padded = functional.pad(x, (0, count * size - x.shape[1]))
    y = torch.empty(len(x), count * size, **_FLOAT32)
    bfloat16_kernels.blocks_product(as_array(blocks), as_array(padded), y.numpy())
    return y[:, : x.shape[1]].to(x.dtype).contiguous()


#: By the name of the kernel, those that are no task.
_PRODUCTS: dict[str, Callable[[Tensor, PackedLayer], Tensor]] = {
    "dot": _packed_product_bfloat16,
    "panels": _unpacked_product,
    rounded.KERNEL: rounded.packed_product,
}
