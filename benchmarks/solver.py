"""The exact solver against the paper's loop: the same matrices, device and threads, one process.

    python benchmarks/solver.py                      every linear of wide-llama and babyllama-1m
    python benchmarks/solver.py --matrices 2 --adam-iterations 300      a quick look

Writes solver.json and solver.png. Clocks start when a solver is given its matrix; compiling is done
before, in runs that are not counted. The exact solver runs three times: as `armor prune` has it; in
a short run, as with `--iterations 40`; and without its noise, to see what the noise is worth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import (
    COLOURS,
    add_common,
    figure,
    save_figure,
    shared_folder,
    use_threads,
    write_result,
)
from problems import Matrix, as_matrix, model_inputs

from armor.factorize import adam, exact
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors

#: Key of a run, and what the plot calls it.
SOLVERS = {
    "exact": "exact (this project)",
    "calm": "exact, without noise",
    "adam": "the paper's loop",
}
SHORT = 40


@dataclass(frozen=True)
class Run:
    """One solver on one matrix. Losses are relative to that of a zero weight.

    Attributes:
        trace: (seconds, loss) at the start and after each iteration.
        final: loss of the factors returned.
        seconds: of the whole call.
    """

    trace: list[tuple[float, float]]
    final: float
    seconds: float

    def reached(self, loss: float) -> float | None:
        """Seconds until the loss was at most `loss`; None if it never was."""
        return next((seconds for seconds, value in self.trace if value <= loss), None)


def timed(solve: Callable[..., tuple[Factors, list[float]]], matrix: Matrix, **options: Any) -> Run:
    """Run `solve` with a stamp for each iteration."""
    problem = matrix.problem
    zero = problem.loss(torch.zeros_like(problem.target))
    start = min(problem.loss(factors.core) for factors in matrix.starts) / zero
    trace = [(0.0, start)]
    begin = time.perf_counter()
    factors, _ = solve(
        problem,
        starts=matrix.starts,
        on_iteration=lambda loss: trace.append((time.perf_counter() - begin, loss)),
        **options,
    )
    seconds = time.perf_counter() - begin
    return Run(trace, problem.loss(factors.dense()) / zero, seconds)


@contextmanager
def without_noise() -> Iterator[None]:
    """While active, the exact solver only descends, and does all the iterations it is given."""
    kept = exact.ANNEALED, exact.ANNEALED_LARGE_OVERHEAD, exact.MIN_IMPROVEMENT
    exact.ANNEALED, exact.ANNEALED_LARGE_OVERHEAD, exact.MIN_IMPROVEMENT = 0.0, 0.0, float("-inf")
    try:
        yield
    finally:
        exact.ANNEALED, exact.ANNEALED_LARGE_OVERHEAD, exact.MIN_IMPROVEMENT = kept


def run_all(matrix: Matrix, block: int, iterations: int, adam_iterations: int) -> dict[str, Run]:
    """ "exact" as `armor prune` has it, "short", "calm" without noise, and "adam"."""
    runs = {
        "exact": timed(exact.factorize, matrix, block=block, iterations=iterations),
        "short": timed(exact.factorize, matrix, block=block, iterations=min(SHORT, iterations)),
    }
    with without_noise():
        runs["calm"] = timed(exact.factorize, matrix, block=block, iterations=iterations)
    runs["adam"] = timed(adam.factorize_adam, matrix, block=block, iterations=adam_iterations)
    return runs


def compare(runs: dict[str, Run]) -> dict[str, Any]:
    """The figures of one matrix, from `run_all`.

    `seconds_adam` is when the paper's loop first had the loss that it ended with, `seconds_NAME`
    when the exact solver's run NAME had it, `ratio_NAME` the one over the other; `lower_NAME` is
    how far below the loop's loss that run ends.
    """
    # The factors' own loss, summed anew, may differ from the trace's in the last digits.
    goal = max(runs["adam"].final, min(loss for _, loss in runs["adam"].trace))
    row: dict[str, Any] = {"start": runs["exact"].trace[0][1]}
    slow = row["seconds_adam"] = runs["adam"].reached(goal * (1 + 1e-6))
    for name, run in runs.items():
        row[f"final_{name}"] = run.final
        row[f"iterations_{name}"] = len(run.trace) - 1
        row[f"total_{name}"] = run.seconds
        if name != "adam":
            fast = row[f"seconds_{name}"] = run.reached(goal * (1 + 1e-6))
            row[f"ratio_{name}"] = slow / fast if slow and fast else None
            row[f"lower_{name}"] = 1.0 - run.final / runs["adam"].final
    return row


def thinned(trace: list[tuple[float, float]], count: int = 150) -> list[list[float]]:
    """About `count` points of a trace, evenly spread over the logarithm of the time."""
    kept = [trace[0]]
    for point in trace[1:]:
        if len(kept) < 2 or point[0] >= kept[-1][0] * (trace[-1][0] / trace[1][0]) ** (1 / count):
            kept.append(point)
    return [[round(seconds, 5), loss] for seconds, loss in [*kept, trace[-1]]]


def spread(items: list[Any], count: int | None) -> list[Any]:
    """`count` of `items`, evenly over the list; all of them for None."""
    if count is None or count >= len(items):
        return items
    return [items[number * len(items) // count] for number in range(count)]


def load(arguments: argparse.Namespace, device: torch.device) -> list[Matrix]:
    found = []
    for name in arguments.models:
        folder = arguments.models_dir / name
        layers = model_inputs(folder, arguments.text, arguments.samples, arguments.seq_len)
        for layer, inputs in spread(list(layers), arguments.matrices):
            matrix = as_matrix(layer, inputs, arguments.objective)
            problem = Problem(matrix.problem.target.to(device), matrix.problem.moment.to(device))
            starts = [Factors(each.core.to(device), each.mask.to(device)) for each in matrix.starts]
            found.append(Matrix(matrix.name, problem, starts))
    return found


def plot(arguments: argparse.Namespace, rows: list[dict[str, Any]], where: str) -> Path:
    drawing, axes = figure()
    for row in rows:
        for name, label in SOLVERS.items():
            trace = row[f"trace_{name}"]
            axes.plot(
                [seconds for seconds, _ in trace[1:]],
                [loss / row["start"] for _, loss in trace[1:]],
                color=COLOURS[{"calm": "other"}.get(name, name)],
                alpha=0.6,
                linewidth=1.0,
                label=label if row is rows[0] else None,
            )
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("proxy loss, NoWag-P = 1")
    axes.set_title(f"{len(rows)} matrices, block {arguments.block}, {where}", fontsize=10)
    axes.legend(frameon=False)
    return save_figure(arguments, drawing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_common(parser, "solver")
    shared = shared_folder()
    parser.add_argument("--models-dir", type=Path, default=shared / "models")
    parser.add_argument("--models", nargs="+", default=["wide-llama", "babyllama-1m"])
    parser.add_argument(
        "--text", type=Path, default=shared / "data/tinystories/tinystories_train_sample.txt"
    )
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--matrices", type=int, help="so many of each model, evenly spread")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--objective", choices=["diag", "full"], default="diag")
    parser.add_argument(
        "--iterations",
        type=int,
        default=exact.DEFAULT_ITERATIONS,
        help="of the exact solver (%(default)s)",
    )
    parser.add_argument("--adam-iterations", type=int, default=adam.ITERATIONS)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    use_threads(arguments.threads)
    device = torch.device(arguments.device)
    matrices = load(arguments, device)
    run_all(matrices[0], arguments.block, 3, 3)  # compiles

    rows = []
    print(f"{'matrix':38} {'shape':>11} {'start':>8} {'adam':>8} {'exact':>8} {'ratio':>8}")
    for matrix in matrices:
        runs = run_all(matrix, arguments.block, arguments.iterations, arguments.adam_iterations)
        row = {"matrix": matrix.name, "shape": list(matrix.shape), **compare(runs)}
        row |= {f"trace_{name}": thinned(runs[name].trace) for name in SOLVERS}
        rows.append(row)
        ratio = "never" if row["ratio_exact"] is None else f"{row['ratio_exact']:.0f}x"
        print(
            f"{matrix.name:38} {'x'.join(map(str, matrix.shape)):>11} {row['start']:8.5f}"
            f" {row['final_adam']:8.5f} {row['final_exact']:8.5f} {ratio:>8}",
            flush=True,
        )

    summary: dict[str, Any] = {"matrices": len(rows)}
    for name in ("exact", "short", "calm"):
        ratios = [row[f"ratio_{name}"] for row in rows if row[f"ratio_{name}"] is not None]
        summary[name] = {
            "reached_adams_loss": len(ratios),
            "median_ratio": median(ratios) if ratios else None,
            "median_lower": median(row[f"lower_{name}"] for row in rows),
            "least_lower": min(row[f"lower_{name}"] for row in rows),
            "median_seconds": median(row[f"total_{name}"] for row in rows),
        }
    path = write_result(arguments, device, {"summary": summary, "rows": rows})
    where = f"{device}, {arguments.threads} thread{'s' * (arguments.threads > 1)}"
    picture = plot(arguments, rows, where)
    print()
    for name, what in (
        ("exact", "default"),
        ("short", f"{SHORT} iterations"),
        ("calm", "no noise"),
    ):
        found = summary[name]
        ratio = "-" if found["median_ratio"] is None else f"{found['median_ratio']:.0f}x"
        print(
            f"exact, {what}: at adam's final loss on {found['reached_adams_loss']} of {len(rows)}"
            f" matrices, {ratio} sooner (median); ends {found['median_lower']:.1%} lower (median;"
            f" least {found['least_lower']:.1%}) after {found['median_seconds']:.2f} s"
        )
    print(f"wrote {path} and {picture}")


if __name__ == "__main__":
    main()
