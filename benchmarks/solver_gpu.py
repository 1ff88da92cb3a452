"""The solvers on a GPU, on matrices of the shapes of real models.

    python benchmarks/solver_gpu.py                       all shapes, and the paper's loop on one
    python benchmarks/solver_gpu.py --device cpu --small  shapes 16 times smaller: does it run?

Weights are random, with singular values that fall as k^-0.35 and log-normal rows; inputs have
log-normal channels, a few of them 20 times larger, and, for the full moment, a common part. On a
GPU losses are known ten at a time, so seconds to a loss may be those of nine iterations too many.
Writes solver_gpu.json, after each shape what there is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import torch
from common import Failures, add_common, synchronise, use_threads, write_result
from problems import Matrix, as_matrix
from solver import compare, run_all, timed, without_noise
from torch import Tensor
from traffic import count, sweep_cost

from armor.device import float32_products
from armor.factorize import adam, exact
from armor.run.plan import choose_block
from armor.run.solve import LayerInputs

Shape = tuple[int, int]
#: (out, in) of the linears of each model, and how many it has of them.
MODELS: dict[str, dict[Shape, int]] = {
    "Llama-2-7B": {(4096, 4096): 128, (11008, 4096): 64, (4096, 11008): 32},
    "Llama-3-8B": {(4096, 4096): 64, (1024, 4096): 64, (14336, 4096): 64, (4096, 14336): 32},
    "Qwen2.5-14B": {(5120, 5120): 96, (1024, 5120): 96, (13824, 5120): 96, (5120, 13824): 48},
}
OVERHEAD = 0.10
SMALLER = 16


def random_layer(shape: Shape, device: torch.device) -> LayerInputs:
    """A weight and a second moment as one meets them, from a fixed seed."""
    rows, cols = shape
    draw = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, device=device)

    basis = torch.linalg.qr(normal(cols, cols))[0]
    falling = torch.arange(1, cols + 1, device=device) ** -0.35
    weight = normal(rows, cols) @ ((basis * falling) @ basis.T)
    weight *= torch.exp(0.3 * normal(rows, 1))
    common = normal(cols, max(1, cols // 16))
    second = 0.3 * (common @ common.T) / common.shape[1]
    second.diagonal().add_(0.7)
    scale = torch.exp(0.7 * normal(cols))
    scale[torch.randperm(cols, generator=draw, device=device)[: max(1, cols // 500)]] *= 20
    return LayerInputs(weight, second * scale * scale.unsqueeze(1))


def ceilings(device: torch.device, small: bool) -> dict[str, float]:
    """Bytes a second of a large copy and operations a second of a large float32 product."""
    side = 1024 if small else 8192
    one, two = (torch.randn(side, side, device=device) for _ in range(2))
    result = torch.empty_like(one)
    copied = _best_seconds(lambda: result.copy_(one), device)
    with float32_products():
        multiplied = _best_seconds(lambda: torch.mm(one, two, out=result), device)
    return {
        "bytes_per_second": 2 * one.numel() * 4 / copied,
        "flop_per_second": 2 * side**3 / multiplied,
    }


def _best_seconds(run: Any, device: torch.device, repeats: int = 10) -> float:
    found = []
    for _ in range(repeats):
        synchronise(device)
        begin = time.perf_counter()
        run()
        synchronise(device)
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def seconds_each(stamps: Sequence[float]) -> float:
    """Of an iteration, the first lot left out; stamps: at the start, and when each was reported.

    On a GPU `REPORT_EVERY` of them are reported at once, when the last is done.
    """
    first = exact.REPORT_EVERY
    return (stamps[-1] - stamps[first]) / (len(stamps) - 1 - first)


def measure(matrix: Matrix, block: int, long: int, device: torch.device) -> dict[str, Any]:
    """One shape: time of an iteration, time to convergence, and what the iteration achieves.

    Converged is where `long` iterations of mere descent end; the default run, with its noise, gets
    below that.
    """
    timed(exact.factorize, matrix, block=block, iterations=3)  # compiles
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    with without_noise():
        run = timed(exact.factorize, matrix, block=block, iterations=long)
    step = seconds_each([seconds for seconds, _ in run.trace])
    best = min(loss for _, loss in run.trace)
    product = timed(exact.factorize, matrix, block=block)

    def iterations(number: int) -> Any:
        return exact.factorize(matrix.problem, block, matrix.starts, number)

    two, three = count(lambda: iterations(2)), count(lambda: iterations(3))
    flop, moved = (
        after - before + sweep
        for before, after, sweep in zip(two, three, sweep_cost(*matrix.shape, block), strict=True)
    )
    row = {
        "block": block,
        "start": run.trace[0][1],
        "converged": best,
        "ms_per_iteration": 1e3 * step,
        "seconds_to_1_percent": product.reached(1.01 * best) or inf,
        "seconds_default": product.seconds,
        "loss_default": product.final,
        "flop_per_iteration": flop,
        "bytes_per_iteration": moved,
        "flop_per_second": flop / step,
        "bytes_per_second": moved / step,
    }
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - held
        row["peak_memory_in_matrices"] = peak / (4 * matrix.problem.target.numel())
    return row


def whole_models(
    names: list[str], rows: list[dict[str, Any]], objective: str
) -> dict[str, dict[str, float]]:
    """Solver seconds of every linear of a model, from those of one of each shape, if there are."""
    by_shape = {tuple(row["shape"]): row for row in rows if row["objective"] == objective}
    found = {}
    for name in names:
        counts = MODELS[name].items()
        if not by_shape.keys() >= MODELS[name].keys():
            continue
        found[name] = {
            key: sum(number * by_shape[shape][f"seconds_{key}"] for shape, number in counts)
            for key in ("to_1_percent", "default")
        }
        found[name]["matrices"] = sum(number for _, number in counts)
    return found


def against_adam(matrix: Matrix, block: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The paper's loop and the exact solver on one matrix; prints and returns their figures."""
    timed(adam.factorize_adam, matrix, block=block, iterations=20)  # warms up
    runs = run_all(matrix, block, exact.DEFAULT_ITERATIONS, arguments.adam_iterations)
    figures = compare(runs)
    fast, ratio = figures["seconds_exact"], figures["ratio_exact"]
    there = "never" if ratio is None else f"in {fast:.3f} s ({ratio:.0f}x faster)"
    print(
        f"  the paper's loop: {figures['total_adam']:.1f} s to {figures['final_adam']:.5f};"
        f" exact was there {there} and ended {figures['lower_exact']:.1%} lower",
        flush=True,
    )
    return {"shape": list(matrix.shape), "block": block, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_common(parser, "solver_gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--small", action="store_true", help=f"shapes {SMALLER} times smaller: a test, no result"
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--objectives", nargs="+", default=["diag", "full"], choices=["diag", "full"]
    )
    parser.add_argument(
        "--long",
        type=int,
        default=200,
        help="of mere descent, which count as convergence (%(default)s)",
    )
    parser.add_argument("--adam-iterations", type=int, default=adam.ITERATIONS)
    arguments = parser.parse_args()
    if arguments.long <= exact.REPORT_EVERY:
        parser.error(f"--long must be more than {exact.REPORT_EVERY}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "solver_gpu needs a CUDA device and found none; --device cpu --small tries it without",
            file=sys.stderr,
        )
        raise SystemExit(2)
    use_threads(arguments.threads)
    device = torch.device(arguments.device)
    ceiling = ceilings(device, arguments.small)
    print(
        f"ceilings: copy {ceiling['bytes_per_second'] / 1e9:,.0f} GB/s,"
        f" float32 product {ceiling['flop_per_second'] / 1e12:.2f} TFLOP/s"
    )

    shapes = dict.fromkeys(shape for name in arguments.models for shape in MODELS[name])
    rows: list[dict[str, Any]] = []
    duel: dict[str, Any] | None = None
    estimates: dict[str, Any] = {}
    failures = Failures()

    def save() -> Path:
        data = {"ceilings": ceiling, "rows": rows, "against_adam": duel, "whole_models": estimates}
        data["failures"] = failures.found
        return write_result(arguments, device, data)

    print(
        f"{'shape':>12} {'kind':>5} {'block':>5} {'ms/it':>8} {'to 1 %':>8} {'default':>8}  of peak"
    )
    for shape in shapes:
        size = tuple(side // SMALLER for side in shape) if arguments.small else shape
        block, _ = choose_block(size, OVERHEAD)
        inputs = random_layer(size, device)
        for objective in arguments.objectives:
            name = "x".join(map(str, size))
            with failures.of(f"{name}, {objective}"):
                matrix = as_matrix(name, inputs, objective)
                row = {"shape": list(shape), "measured_shape": list(size), "objective": objective}
                row |= measure(matrix, block, arguments.long, device)
                rows.append(row)
                print(
                    f"{name:>12} {objective:>5} {block:5} {row['ms_per_iteration']:8.2f}"
                    f" {row['seconds_to_1_percent']:8.3f} {row['seconds_default']:8.3f} "
                    f" {row['flop_per_second'] / ceiling['flop_per_second']:.0%} of FLOP/s,"
                    f" {row['bytes_per_second'] / ceiling['bytes_per_second']:.0%} of bytes/s",
                    flush=True,
                )
                save()
                if duel is None and objective == "diag":
                    duel = against_adam(matrix, block, arguments)
            save()

    estimates = {
        objective: whole_models(arguments.models, rows, objective)
        for objective in arguments.objectives
    }
    for objective, models in estimates.items():
        for name, found in models.items():
            print(
                f"{name}, {objective}: {found['matrices']} matrices, to 1 %"
                f" {found['to_1_percent'] / 60:.1f} min, at the default settings"
                f" {found['default'] / 60:.1f} min"
                + (" (shapes made smaller: no estimate of the model)" if arguments.small else "")
            )
    print(f"wrote {save()}")
    failures.end()


if __name__ == "__main__":
    main()
