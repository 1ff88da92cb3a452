"""What the exact solver holds at its peak, in matrices: resident memory on the CPU.

    python benchmarks/solver_memory.py --side 2048

Each objective runs in a process of its own. Counted is what the solver adds to the problem and the
start it is given, and those as well; matrices are of `side` squared float32 numbers. Writes
solver_memory.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import torch
from common import add_common, use_threads, write_result
from solver_gpu import random_layer

from armor.baselines.nowag import nowag
from armor.factorize import exact
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors


def resident() -> int:
    """Resident memory now, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """The most so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(objective: str, side: int, block: int, threads: int) -> dict[str, float]:
    """Peak of three iterations (noise and descent) on a random layer."""
    use_threads(threads)
    small = random_layer((block, 2 * block), torch.device("cpu"))
    solve(small.weight, small.second, objective, block)  # compiles, loads the libraries
    torch.manual_seed(0)
    weight = torch.randn(side, side)
    moment = torch.full((side, side), 0.1).fill_diagonal_(1.0)  # in place: no peak of its own
    target = Problem(weight, moment if objective == "full" else torch.rand(side) + 0.1)
    start = nowag(target)
    reached = peak()
    before = resident()
    exact.factorize(target, block, [start], 3)
    unit = 4 * side * side
    # A peak from before the solver would hide its own.
    assert peak() > reached
    inputs = 1 + 1.25 + (objective == "full")  # target, start with its mask, moment
    added = (peak() - before) / unit
    return {"added": added, "with_inputs": added + inputs}


def solve(weight: torch.Tensor, moment: torch.Tensor, objective: str, block: int) -> Factors:
    """A short solve from NoWag-P's mask."""
    problem = Problem(weight, moment if objective == "full" else moment.diagonal().contiguous())
    return exact.factorize(problem, block, [nowag(problem)], 3)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_common(parser, "solver_memory")
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--block", type=int, default=128)
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    for objective in ("diag", "full"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            job = (objective, arguments.side, arguments.block, arguments.threads)
            rows[objective] = pool.apply(measure, job)
        print(
            f"{objective}: {rows[objective]['added']:.2f} matrices besides its inputs,"
            f" {rows[objective]['with_inputs']:.2f} with them"
        )
    print(f"wrote {write_result(arguments, torch.device('cpu'), {'matrices': rows})}")


if __name__ == "__main__":
    main()
