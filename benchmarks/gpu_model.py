"""What the solver asks of a GPU, counted without one, and the time that allows: arithmetic only.

    python benchmarks/gpu_model.py

Runs `armor.factorize.exact` on the meta device as it runs on a GPU, counts launches, waits, bytes
and FLOPs of an iteration, adds the chain of dependent steps of the sweep, and divides by what an
H100 and an H200 do. Then the whole of Llama-2-7B with default settings, and the runtime. Writes
``results/gpu_model.json``. No figure of it is measured; benchmarks/gpu.sh measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any
from unittest.mock import patch

import torch
from common import add_common, write_result
from gpu_decode import LAYERS, count_decode, decode_ratios
from gpu_mlp import LAUNCH, count_mlp, prefill_seconds
from torch import Tensor

from armor.bench.counting import Counting, Counts
from armor.factorize import exact, products
from armor.factorize import sweep as sweeps
from armor.factorize.exact import DEFAULT_ITERATIONS
from armor.factorize.gpu_workspace import GpuWorkspace
from armor.factorize.kernels import triton
from armor.factorize.kernels.rows import ROWS_TOGETHER
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors

BLOCK = 128
#: (rows, columns): how many of a decoder block of Llama-2-7B.
LLAMA_2_7B = {(4096, 4096): 4, (11008, 4096): 2, (4096, 11008): 1}
LLAMA_BLOCKS, TOKENS = 32, 128 * 512
SAMPLED = 2048  # tokens held out, and as many others, see `armor.calibrate.held_out`
#: Of a step of the sweep: instructions of a warp (SASS of sm_90, inner loop), and cycles that each
#: set of rows takes besides. Eight warps share four schedulers; one alone issues no faster.
STEP_INSTRUCTIONS, SET_CYCLES, WARPS_EACH = 165, 2000, max(1, ROWS_TOGETHER // 4)
#: Assumed: a batched float64 factorisation or triangular solve.
FACTORISATION = 2.5e-4
#: Assumed: bytes a second to a disk, hashed; to the host.
DISK, TO_HOST = 0.5e9, 6e9
TF32 = " in TF32"
#: FLOPs a second by NVIDIA's data sheets, without sparsity.
SHEET_TF32, SHEET_FLOAT32 = 494e12, 67e12
_FACTORISATIONS = ("linalg_cholesky_ex", "linalg_solve_triangular")


@dataclass(frozen=True)
class Gpu:
    """What a GPU is expected to reach, not its data sheet: bytes and FLOPs a second, cycles."""

    bandwidth: float
    sheet_bandwidth: float
    cache: float = 5.5e12  # what L2 hands out
    float32: float = 50e12
    tf32: float = 350e12
    bfloat16: float = 600e12
    blocks: float = 400e12  # products with blocks of 128 in bfloat16
    float64: float = 30e12
    clock: float = 1.755e9
    processors: int = 132


GPUS = {"H100": Gpu(2.8e12, 3.35e12), "H200": Gpu(4.1e12, 4.8e12)}


_generator = torch.Generator


class _Generator:
    """The meta device has none: that of the CPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:  # type: ignore[misc]
        return _generator("cpu" if torch.device(device).type == "meta" else device)


class _Kernel:
    """In the place of the sweep's."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting

    def __getitem__(self, grid: tuple[int, ...]) -> _Kernel:
        return self

    def __call__(self, *arguments: Any, **constants: Any) -> None:
        self._counting.counts.launches["sweep"] += 1


@contextmanager
def as_on_gpu(counting: Counting) -> Iterator[None]:
    """While active, the solver takes the path of a GPU on the meta device, too."""

    real_tolist = Tensor.tolist

    def tolist(tensor: Tensor) -> list[float]:
        if not tensor.is_meta:
            return real_tolist(tensor)
        counting.counts.waits["tolist"] += 1
        return [0.0] * tensor.numel()

    @contextmanager
    def tf32(precision: str) -> Iterator[None]:
        assert precision == "tf32"
        counting.label = TF32
        yield
        counting.label = ""

    (backend,) = (each for each in sweeps.BACKENDS if each.name == "triton")
    with ExitStack() as undo:
        for place, name, value in (
            (sweeps, "BACKENDS", (replace(backend, devices=None),)),
            (triton, "_sweep", _Kernel(counting)),
            (products, "_by_tensor_cores", lambda _: True),
            (products, "float32_products", tf32),
            (Tensor, "tolist", tolist),
            (torch, "Generator", _Generator),
            # The answer that is missing, whether too little was gained, means to go on.
            (exact, "MIN_IMPROVEMENT", 1.0),
        ):
            undo.enter_context(patch.object(place, name, value))
        yield


def count_solve(shape: tuple[int, int], full: bool, iterations: int, block: int = BLOCK) -> Counts:
    """All that a solve asks of a GPU, its losses reported."""

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device="meta")

    rows, cols = shape
    problem = Problem(empty(rows, cols), empty(cols, cols) if full else empty(cols))
    start = Factors(empty(rows, cols), torch.ones(rows, cols, dtype=torch.bool, device="meta"))
    counting = Counting()
    with as_on_gpu(counting), counting:
        exact.factorize(problem, block, [start], iterations, on_iteration=lambda _: None)
    return counting.counts


def count_iteration(shape: tuple[int, int], full: bool) -> Counts:
    """Of one iteration, the mean over the noise and the descent."""
    return count_solve(shape, full, 20).less(count_solve(shape, full, 10), 10)


def sweep_seconds(shape: tuple[int, int], full: bool, gpu: Gpu, block: int = BLOCK) -> float:
    """Of the sweeps of an iteration: their chain, or what all programs of a processor issue."""
    rows, cols = (-(-size // block) for size in shape)
    launches, blocks = (cols, rows) if full else (1, rows * cols)
    if full and 2 * rows <= GpuWorkspace.most_blocks:
        launches, blocks = -(-cols // 2), 2 * rows
    step = STEP_INSTRUCTIONS * WARPS_EACH
    chain = block // ROWS_TOGETHER * (block // 4 * step + SET_CYCLES)
    return launches * -(-blocks // gpu.processors) * chain / gpu.clock


def iteration_seconds(
    counts: Counts, shape: tuple[int, int], full: bool, gpu: Gpu
) -> dict[str, float]:
    """By what takes it."""
    found = {"sweep": sweep_seconds(shape, full, gpu), "products": 0.0, "elementwise": 0.0}
    found["factorisations"] = 0.0
    for name, launches in counts.launches.items():
        moved = counts.bytes[name] / gpu.bandwidth
        if name in _FACTORISATIONS:
            found["factorisations"] += launches * FACTORISATION
        elif flops := counts.flops[name]:
            rate = gpu.tf32 if name.endswith(TF32) else gpu.float32
            found["products"] += max(moved, flops / rate) + launches * LAUNCH
        elif name != "sweep":
            found["elementwise"] += moved + launches * LAUNCH
    return found


def bound_seconds(counts: Counts, shape: tuple[int, int], full: bool, gpu: Gpu) -> float:
    """What no schedule gets below: the data sheet's rates, all at once, launches for nothing."""
    rates = {True: SHEET_TF32, False: SHEET_FLOAT32}
    return max(
        sum(counts.bytes.values()) / gpu.sheet_bandwidth,
        sum(flops / rates[name.endswith(TF32)] for name, flops in counts.flops.items()),
        sweep_seconds(shape, full, gpu),
    )


def llama(seconds: dict[tuple[int, int], float], gpu: Gpu) -> dict[str, float]:
    """Minutes of ``armor prune`` on Llama-2-7B, by part; `seconds` of a full iteration by shape."""
    width, inner, weights = 4096, 11008, 4 * 4096**2 + 3 * 4096 * 11008
    solver = sum(DEFAULT_ITERATIONS * seconds[shape] * n for shape, n in LLAMA_2_7B.items())
    # The dense block once; the pruned one up to each stage, and once as a whole.
    passes = 2 * TOKENS * weights * 3.4 / gpu.bfloat16 * 2  # at half the rate: small batches
    moments = 2 * TOKENS * (8 * width**2 + inner**2 + 2 * width * inner) / gpu.float32
    dampings = 7 * sum(
        n * (cols**3 / 3 + 2 * rows * cols**2) for (rows, cols), n in LLAMA_2_7B.items()
    )
    losses = 3 * 4 * sum(2 * n * rows * cols**2 for (rows, cols), n in LLAMA_2_7B.items())
    # Bytes of moments, and of samples of tokens: inputs on both streams, what a stream is ahead.
    held = 4 * (6 * width**2 + inner**2 + width * inner)
    held += 4 * 2 * SAMPLED * (2 * (3 * width + inner) + 2 * width)
    per_block = {
        "solver": solver,
        "passes of the calibration text": passes,
        "moments": moments,
        "compensated targets, float64": dampings / gpu.float64,
        "losses and the certificate": losses / gpu.tf32,
        "SparseGPT's start": 0.3,
        "moments and samples copied to the host": held / TO_HOST,  # hashed beside the solves
        "layers packed, hashed, written": 0.6 * 2 * weights / DISK,
        "weights read": 2 * weights / 3e9,
    }
    minutes = {part: LLAMA_BLOCKS * one / 60 for part, one in per_block.items()}
    minutes["weights checked, checkpoint written"] = 0.7
    # Written in a thread a twentieth of the time; what is waited for is their copying.
    minutes["activations copied"] = sum(minutes.values()) / 20 * DISK / TO_HOST
    return minutes


def siblings(seconds: dict[tuple[int, int], float], gpu: Gpu) -> float:
    """What q, k and v of Llama-2-7B swept in one launch would take off the solver, as a share.

    They have 96 blocks to a column together, where two columns of one of them have 64: two thirds
    of the time. Gate and up have 172, more than there are processors.
    """
    whole = sum(seconds[shape] * n for shape, n in LLAMA_2_7B.items())
    return sweep_seconds((4096, 4096), True, gpu) / whole


def as_dict(counts: Counts) -> dict[str, dict[str, int]]:
    return {field.name: dict(getattr(counts, field.name)) for field in fields(counts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser, "gpu_model")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for shape in LLAMA_2_7B:
        for full in (False, True):
            counts = count_iteration(shape, full)
            row: dict[str, Any] = {"shape": list(shape), "full": full, "counts": as_dict(counts)}
            for name, gpu in GPUS.items():
                row[name] = iteration_seconds(counts, shape, full, gpu)
                row[f"{name} bound"] = bound_seconds(counts, shape, full, gpu)
            rows.append(row)
            h200 = row["H200"]
            parts = ", ".join(f"{part} {1e3 * one:.1f}" for part, one in h200.items())
            print(
                f"{shape[0]}x{shape[1]} {'full' if full else 'diag'}:"
                f" {sum(counts.launches.values())} launches,"
                f" {sum(counts.bytes.values()) / 1e9:.1f} GB,"
                f" {sum(counts.flops.values()) / 1e12:.2f} TFLOP;"
                f" H100 {1e3 * sum(row['H100'].values()):.1f} ms,"
                f" H200 {1e3 * sum(h200.values()):.1f} ms: {parts};"
                f" bound {1e3 * row['H100 bound']:.1f} and {1e3 * row['H200 bound']:.1f} ms",
                flush=True,
            )
    whole, shared, prefill, of_memory, decode = {}, {}, {}, {}, {}
    one, other = (count_mlp(as_one) for as_one in (True, False))
    for name, gpu in GPUS.items():
        times = {tuple(r["shape"]): sum(r[name].values()) for r in rows if r["full"]}
        whole[name] = llama(times, gpu)
        print(f"Llama-2-7B on one {name}: {sum(whole[name].values()):.1f} minutes")
        for part, minutes in whole[name].items():
            print(f"  {part}: {minutes:.2f}")
        shared[name] = siblings(times, gpu)
        prefill[name] = prefill_seconds(one, other, gpu)
        of_memory[name] = prefill_seconds(one, other, replace(gpu, cache=inf))
        print(f"  q, k and v swept together: {shared[name]:.1%} of the solver")
        decode[name] = decode_ratios(gpu)
        for what, ratio in decode[name].items():
            print(f"  decode of {what}: {ratio:.2f}")
        for kind, each in (("", of_memory[name]), (", caches counted", prefill[name])):
            ratios = ", ".join(f"{k} {each['dense'] / v:.2f}" for k, v in each.items())
            print(f"  an MLP's prefill{kind}: {ratios}")
    found = {"iterations": rows, "llama": whole, "siblings": shared, "decode": decode}
    found["decode_counts"] = {
        name: as_dict(count_decode(outs, cols, GPUS["H100"].processors))
        for name, (outs, cols) in LAYERS.items()
    }
    found |= {"prefill": of_memory, "prefill_caches_counted": prefill}
    found["prefill_counts"] = {"as one": as_dict(one), "layer by layer": as_dict(other)}
    path = write_result(arguments, torch.device("cpu"), found)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
