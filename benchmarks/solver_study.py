"""What the exact solver's choices are worth, over every linear of some trained models.

    python benchmarks/solver_study.py

Five questions, each matrix in one process: what the noise takes off the final loss (against as
many iterations without it, and against the same seconds without it); how far final losses in
float32 and float64 lie apart; what it costs that a GPU moves rows by sets, columns of blocks by
twos, and multiplies in parts (played on the CPU); what of that the columns are; how much faster two
threads are than one on the largest matrices.
Writes solver_study.json; `--questions threads` wants an idle machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from common import add_common, shared_folder, use_threads, write_result
from problems import Matrix, as_matrix, model_inputs
from solver import without_noise

from armor.factorize import exact, products
from armor.factorize import sweep as sweeps
from armor.factorize.gpu_workspace import GpuWorkspace
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors

#: Without noise as many more iterations are run, so that the seconds can be compared.
LONGER = 2


def solve(matrix: Matrix, block: int, iterations: int) -> tuple[float, list[float], float]:
    """Final loss relative to a zero weight's, the kept losses, seconds."""
    begin = time.perf_counter()
    factors, losses = exact.factorize(matrix.problem, block, matrix.starts, iterations)
    seconds = time.perf_counter() - begin
    return matrix.problem.loss(factors.dense()) / matrix.problem.zero_loss(), losses, seconds


def wide(matrix: Matrix) -> Matrix:
    """The same in float64."""
    problem = Problem(matrix.problem.target.double(), matrix.problem.moment.double())
    starts = [Factors(each.core.double(), each.mask) for each in matrix.starts]
    return Matrix(matrix.name, problem, starts)


def noise(matrices: list[Matrix], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """With and without noise."""
    rows = []
    for matrix in matrices:
        final, _, seconds = solve(matrix, arguments.block, arguments.iterations)
        with without_noise():
            count = LONGER * arguments.iterations
            _, losses, longer = solve(matrix, arguments.block, count)
        at_time = losses[min(count, round(count * seconds / longer))]
        none = losses[arguments.iterations]
        rows.append(
            about(matrix)
            | {"noise": final, "none": none, "same_seconds": at_time, "longer": losses[-1]}
            | {"lower": 1 - final / none, "lower_same_seconds": 1 - final / at_time}
            | {"lower_than_longer": 1 - final / losses[-1]}
        )
    return rows


def precision(matrices: list[Matrix], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Final losses in float32 against float64."""
    rows = []
    for matrix in matrices:
        single, *_ = solve(matrix, arguments.block, arguments.iterations)
        double, *_ = solve(wide(matrix), arguments.block, arguments.iterations)
        rows.append(
            about(matrix)
            | {"float32": single, "float64": double, "apart": abs(single / double - 1)}
        )
    return rows


def gpu(matrices: list[Matrix], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The order and the products of a GPU against those of a CPU, from the same starts."""
    rows = []
    for matrix in matrices:
        cpu, *_ = solve(matrix, arguments.block, arguments.iterations)
        with as_on_gpu():
            other, *_ = solve(matrix, arguments.block, arguments.iterations)
        rows.append(about(matrix) | {"cpu": cpu, "gpu": other, "higher": other / cpu - 1})
    return rows


def columns(matrices: list[Matrix], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Two columns of blocks of the full objective at once, as a GPU has them, against one."""
    rows = []
    for matrix in matrices:
        with as_on_gpu(), patch.object(GpuWorkspace, "most_blocks", 0):
            one, *_ = solve(matrix, arguments.block, arguments.iterations)
        with as_on_gpu():
            two, *_ = solve(matrix, arguments.block, arguments.iterations)
        rows.append(about(matrix) | {"one": one, "two": two, "higher_by_sets": two / one - 1})
    return rows


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """A GPU's steps, rows by sets, products of leading bits and rests, these cut to TF32's."""
    backends, split, test = sweeps.BACKENDS, products._split, products._by_tensor_cores
    workspace = exact.workspace

    def cut(
        matrix: torch.Tensor, out: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        high, low = split(matrix, out)
        return high, low.copy_(split(low.contiguous())[0])

    exact.workspace = GpuWorkspace
    sweeps.BACKENDS = tuple(each for each in backends if each.name == "torch")
    products._split = cut
    products._by_tensor_cores = lambda matrix: matrix.dtype == torch.float32
    try:
        yield
    finally:
        sweeps.BACKENDS, exact.workspace = backends, workspace
        products._split, products._by_tensor_cores = split, test


def threads(matrices: list[Matrix], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Two threads against one on the three largest, in turn: a busy machine slows both."""
    rows = []
    for matrix in sorted(matrices, key=lambda each: each.problem.target.numel())[-3:]:
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(5):
            for count in seconds:
                use_threads(count)
                seconds[count].append(solve(matrix, arguments.block, 20)[2])
        one, two = min(seconds[1]), min(seconds[2])
        rows.append(about(matrix) | {"one": one, "two": two, "faster": one / two})
    use_threads(arguments.threads)
    return rows


def about(matrix: Matrix) -> dict[str, Any]:
    return {"matrix": matrix.name, "shape": list(matrix.shape)}


QUESTIONS = {
    "noise": noise,
    "precision": precision,
    "gpu": gpu,
    "columns": columns,
    "threads": threads,
}
#: The rows' figures that are summed up, in words.
FIGURES = {
    "lower": "loss lower than without noise",
    "lower_same_seconds": "and than without noise in the same seconds",
    "lower_than_longer": f"and than {LONGER} times the iterations without noise",
    "apart": "float32 apart from float64",
    "higher": "loss higher the GPU's way",
    "higher_by_sets": "loss higher with two columns of blocks at once",
    "faster": "two threads faster than one",
}


def summary(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_common(parser, "solver_study")
    shared = shared_folder()
    parser.add_argument("--models-dir", type=Path, default=shared / "models")
    parser.add_argument("--models", nargs="+", default=["wide-llama", "babyllama-1m", "qwen3-1m"])
    parser.add_argument(
        "--text", type=Path, default=shared / "data/tinystories/tinystories_train_sample.txt"
    )
    parser.add_argument("--every", type=int, default=1, help="matrix is taken (%(default)s: all)")
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=exact.DEFAULT_ITERATIONS)
    parser.add_argument("--questions", nargs="+", default=list(QUESTIONS), choices=QUESTIONS)
    parser.add_argument("--objectives", nargs="+", default=["diag", "full"])
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    inputs = [
        layer
        for name in arguments.models
        for layer in model_inputs(
            arguments.models_dir / name, arguments.text, arguments.samples, arguments.seq_len
        )
    ]
    inputs = inputs[:: arguments.every]
    found: dict[str, Any] = {}
    for objective in arguments.objectives:
        matrices = [as_matrix(name, layer, objective) for name, layer in inputs]
        solve(matrices[0], arguments.block, 5)  # compiles
        for question in arguments.questions:
            if question == "columns" and objective != "full":
                continue  # all columns are one launch as it is
            rows = QUESTIONS[question](matrices, arguments)
            figures = [key for key in rows[0] if key in FIGURES]
            found[f"{objective}_{question}"] = {
                "matrices": len(rows),
                **{key: summary([row[key] for row in rows]) for key in figures},
                "rows": rows,
            }
            for key in figures:
                each = found[f"{objective}_{question}"][key]
                print(
                    f"{objective}, {len(rows)} matrices, {FIGURES[key]}: median"
                    f" {each['median']:.4g}, least {each['least']:.4g}, most {each['most']:.4g}",
                    flush=True,
                )
    path = write_result(arguments, torch.device("cpu"), found)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
