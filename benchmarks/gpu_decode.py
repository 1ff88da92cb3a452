"""What decoding one row asks of a GPU, counted without one, and the time that allows.

Used by gpu_model.py. Runs the `triton` backend on the meta device, counts launches, bytes, and the
instructions of the core's loop; dense layers of one input are one product. Arithmetic only;
benchmarks/gpu.sh measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol
from unittest.mock import patch

import torch
from gpu_mlp import FROM_CACHE, LAUNCH, Kernel, Rates, packed_call, run_mlp
from torch.utils._pytree import tree_leaves

from armor.bench.counting import Counting, Counts
from armor.config import PruneConfig
from armor.run.plan import choose_block
from armor.runtime.triton import backend, blocks_kernel, core_kernel, gated_kernel

#: Layers of one input, (outputs of each, inputs), by what they are.
LAYERS: dict[str, tuple[Sequence[int], int]] = {
    "4096x4096": ([4096], 4096),
    "q, k and v of Llama-2-7B": ([4096] * 3, 4096),
    "q, k and v of Llama-3-8B": ([4096, 1024, 1024], 4096),
    "gate and up of Llama-2-7B": ([11008] * 2, 4096),
    "down of Llama-2-7B": ([4096], 11008),
    "gate and up of Llama-3-8B": ([14336] * 2, 4096),
    "down of Llama-3-8B": ([4096], 14336),
}
#: Inner width of the MLP, by model.
MODELS = {"Llama-2-7B": 11008, "Llama-3-8B": 14336}
#: Instructions of a warp in a step of the core's loop, by the block of B that is in it, 0 for none
#: (SASS of sm_90; a test compares the first). Four schedulers hand out one each a cycle.
STEP_INSTRUCTIONS = {0: 330, 128: 340, 64: 180, 32: 180}
INSTRUCTIONS, WITH_LEFT = " instructions", "core_kernel with A"  # what is counted beside FLOPs
#: Assumed: what the program that ends last with a block of outputs takes for A.
LAST = 1.5e-6


class GpuRates(Rates, Protocol):
    """Also the cycles a second, and the processors."""

    clock: float
    processors: int


@dataclass
class _Core:
    """In the place of the core's kernel."""

    counts: Counts
    grid: tuple[int, ...] = ()

    def __getitem__(self, grid: tuple[int, ...]) -> _Core:
        self.grid = grid
        return self

    def __call__(
        self, x: Any, layers: Any, inputs: Any, sums: Any, *_: Any, **constants: Any
    ) -> None:
        name, programs = "core_kernel", prod(self.grid)
        given = {id(leaf): leaf for leaf in tree_leaves((x, layers)) if torch.is_tensor(leaf)}
        read = sum(tensor.nbytes for tensor in given.values())
        steps = programs * inputs.steps
        self.counts.launches[name] += 1
        self.counts.bytes[name] += read
        # Each step takes its part of x, or all of the B that makes it; sums are written and read.
        width, size = 4 * constants["GROUPS"], constants["RIGHT"]
        again = 2 * steps * width * (1 + size)
        self.counts.bytes[name + FROM_CACHE] += read + again + 2 * sums.nbytes
        one = STEP_INSTRUCTIONS[size] * constants["num_warps"]
        self.counts.flops[name + INSTRUCTIONS] += steps * one
        self.counts.flops[WITH_LEFT] += bool(constants["LEFT"])


@contextmanager
def _as_on_gpu(counting: Counting, processors: int) -> Iterator[None]:
    """While active, `triton` runs on the meta device as it does on a GPU."""
    counters = torch.empty(0, dtype=torch.int32, device="meta")
    with ExitStack() as undo:
        for place, name, value in (
            (backend, "_processors", lambda _: processors),
            (backend, "_zeroed_counters", lambda *_: counters),
            (core_kernel, "core_kernel", _Core(counting.counts)),
            (blocks_kernel, "blocks_kernel", Kernel(counting, "blocks_kernel", 1)),
            (gated_kernel, "gated_kernel", Kernel(counting, "gated_kernel", 3)),
        ):
            undo.enter_context(patch.object(place, name, value))
        yield


def count_decode(outs: Sequence[int], cols: int, processors: int) -> Counts:
    """Of one row through layers of one input, with the wrapper blocks of a default prune."""
    budget = PruneConfig.overhead_budget
    calls = [packed_call(out, cols, choose_block((out, cols), budget)[0], "") for out in outs]
    x = torch.empty(1, cols, dtype=torch.bfloat16, device="meta")
    counting = Counting()
    with _as_on_gpu(counting, processors), counting:
        backend.matmul_shared(x, calls)
    return counting.counts


def count_mlp(inner: int, processors: int, as_one: bool) -> Counts:
    """Of one row through a gated MLP, see `run_mlp`."""
    counting = Counting()
    with _as_on_gpu(counting, processors), counting:
        run_mlp(backend, "", 1, inner, as_one)
    return counting.counts


def seconds_of(counts: Counts, gpu: GpuRates) -> float:
    """Each launch what its bytes, its reads of the cache or its instructions take, the longest."""
    found = LAST * counts.flops[WITH_LEFT]
    for name, launches in counts.launches.items():
        cycles = counts.flops[name + INSTRUCTIONS] / (4 * gpu.processors)
        found += launches * LAUNCH + max(
            counts.bytes[name] / gpu.bandwidth,
            counts.bytes[name + FROM_CACHE] / gpu.cache,
            cycles / gpu.clock,
        )
    return found


def dense_seconds(outs: Sequence[int], cols: int, gpu: GpuRates) -> float:
    return LAUNCH + 2 * cols * sum(outs) / gpu.bandwidth


def decode_ratios(gpu: GpuRates) -> dict[str, float]:
    """Time of dense layers to that of pruned ones; the last are blocks without their attention."""
    times = {
        name: (
            dense_seconds(outs, cols, gpu),
            seconds_of(count_decode(outs, cols, gpu.processors), gpu),
        )
        for name, (outs, cols) in LAYERS.items()
    }
    for model, inner in MODELS.items():
        dense = LAUNCH + sum(times[f"{part} of {model}"][0] for part in ("gate and up", "down"))
        for as_one in (False, True):
            counts = count_mlp(inner, gpu.processors, as_one)
            how = "as one" if as_one else "layer by layer"
            pruned = seconds_of(counts, gpu) + (not as_one) * LAUNCH
            times[f"the MLP of {model}, {how}"] = dense, pruned
    for model in MODELS:
        parts = "4096x4096", f"q, k and v of {model}", f"the MLP of {model}, as one"
        dense, pruned = (sum(times[part][place] for part in parts) for place in (0, 1))
        times[f"linears of a block of {model}"] = dense, pruned
    return {name: dense / pruned for name, (dense, pruned) in times.items()}
