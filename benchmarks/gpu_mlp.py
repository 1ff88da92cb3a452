"""What prefill of a gated MLP asks of a GPU, counted without one, and the time that allows.

Used by gpu_model.py. Runs the `semi_structured` backend on the meta device and counts launches and
bytes: layer by layer, and as one. Arithmetic only; benchmarks/gpu.sh measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from armor.bench.counting import Counting, Counts
from armor.checkpoint.format import LayerSpec
from armor.runtime import Call
from armor.runtime.backend import YES
from armor.runtime.gated import Gated
from armor.runtime.semi_structured import backend as semi_structured
from armor.runtime.triton import blocks_kernel, gated_kernel
from armor.sparse.layer import PackedLayer

WIDTH, INNER, ROWS, BLOCK = 4096, 11008, 4096, 128  # Llama-2-7B
CORE = "_cslt_sparse_mm"
#: What programs load again from the L2 cache is counted by this name, next to the kernel's.
FROM_CACHE = " from the cache"
#: Assumed: what cuSPARSELt makes of dense time; a launch that has nothing to do.
CORE_GAIN, LAUNCH = 1.5, 2e-6


class Rates(Protocol):
    """Bytes and FLOPs a second of a GPU."""

    bandwidth: float
    cache: float
    bfloat16: float
    blocks: float


class Kernel:
    """In the place of a Triton kernel of 16-bit numbers: counts its arguments."""

    def __init__(self, counting: Counting, name: str, factors: int) -> None:
        self._counts, self._name, self._factors = counting.counts, name, factors
        self._grid: tuple[int, ...] = ()

    def __getitem__(self, grid: tuple[int, ...]) -> Kernel:
        self._grid = grid
        return self

    def __call__(self, *arguments: Any, **constants: Any) -> None:
        given = {id(leaf): leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)}
        size, items = constants["SIZE"], constants["ITEMS"]
        outputs = constants.get("ROWS", size)
        inputs = max(1, self._factors - 1)  # of the three factors of an MLP one has none of its own
        programs = prod(self._grid)
        self._counts.launches[self._name] += 1
        self._counts.bytes[self._name] += sum(tensor.nbytes for tensor in given.values())
        self._counts.flops[self._name] += 2 * programs * self._factors * outputs * size * items
        loaded = self._factors * outputs * size + inputs * size * items
        self._counts.bytes[self._name + FROM_CACHE] += 2 * programs * loaded


@contextmanager
def _as_on_gpu(counting: Counting) -> Iterator[None]:
    """While active, `semi_structured` runs on the meta device as it does on a GPU."""
    with ExitStack() as undo:
        for place, name, value in (
            (semi_structured, "engine_of", lambda _: "cusparselt"),
            (semi_structured, "_search", lambda *_: ()),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
            (semi_structured, "_algorithms", {}),
            (semi_structured.triton, "is_available", lambda: YES),
            (blocks_kernel, "blocks_kernel", Kernel(counting, "blocks_kernel", 1)),
            (gated_kernel, "gated_kernel", Kernel(counting, "gated_kernel", 3)),
        ):
            undo.enter_context(patch.object(place, name, value))
        yield


def packed_call(out: int, into: int, block: int, prepared_by: str) -> Call:
    """A layer without numbers, prepared where a backend is named."""
    shapes = LayerSpec((out, into), block).tensor_shapes()
    kinds = {"core_indices": torch.uint8}
    parts = {
        part: torch.empty(shape, dtype=kinds.get(part, torch.bfloat16), device="meta")
        for part, shape in shapes.items()
    }
    prepared = torch.empty(out * into * 9 // 16, dtype=torch.bfloat16, device="meta")
    return Call(PackedLayer.of(into, parts), None, prepared if prepared_by else None, prepared_by)


def run_mlp(backend: Any, prepared_by: str, rows: int, inner: int, as_one: bool) -> None:
    """A gated MLP of `WIDTH`; apart, without the activation and the product."""
    sizes = (inner, WIDTH), (inner, WIDTH), (WIDTH, inner)
    gate, up, down = (packed_call(*size, BLOCK, prepared_by) for size in sizes)
    x, between = (
        torch.empty(rows, size, dtype=torch.bfloat16, device="meta") for size in (WIDTH, inner)
    )
    if as_one:
        backend.matmul_gated(x, Gated(gate, up, down, "silu"))
    else:
        backend.matmul_shared(x, [gate, up])
        backend.matmul(between, down)


def count_mlp(as_one: bool) -> Counts:
    """Of a prompt of `ROWS`, but for the activation and the product where these are apart."""
    counting = Counting()
    with _as_on_gpu(counting), counting:
        run_mlp(semi_structured, "semi_structured", ROWS, INNER, as_one)
    return counting.counts


def seconds_of(counts: Counts, gpu: Rates) -> float:
    """Cores take their share of dense time, all else what its bytes or its FLOPs take."""
    cores = counts.launches[CORE]
    found = 2 * ROWS * cores * WIDTH * INNER / gpu.bfloat16 / CORE_GAIN + cores * LAUNCH
    for name, launches in counts.launches.items():
        if name == CORE:
            continue
        found += launches * LAUNCH + max(
            counts.bytes[name] / gpu.bandwidth,
            counts.bytes[name + FROM_CACHE] / gpu.cache,
            counts.flops[name] / gpu.blocks,
        )
    return found


def prefill_seconds(one: Counts, other: Counts, gpu: Rates) -> dict[str, float]:
    """The MLP in bfloat16: dense; pruned layer by layer (`other`); pruned as one.

    Dense and layer by layer, ``silu(gate) * up`` is one pass, as compilers make it.
    """
    between = 2 * ROWS * 3 * INNER / gpu.bandwidth + LAUNCH
    return {
        "dense": 2 * ROWS * 3 * WIDTH * INNER / gpu.bfloat16 + 3 * LAUNCH + between,
        "pruned, layer by layer": seconds_of(other, gpu) + between,
        "pruned, as one": seconds_of(one, gpu),
    }
