"""What it is worth that idle OpenMP threads look for work before they sleep, see `armor.idle`.

    python benchmarks/idle_threads.py

Solves random matrices of SmolLM2's shapes, 20 iterations, on one thread and on two, for several
numbers of looks: alone, and beside two processes that are busy. A process each, the best of two
solves. Prints a table, and writes ``results/idle_threads.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SHAPES, BLOCK, ITERATIONS = ((576, 1536), (576, 576)), 32, 20
LOOKS = (0, 1000, 10_000)
BUSY = "while True: pass"


def solve(threads: int) -> list[float]:
    """Seconds of a solve of each shape."""
    import torch

    from armor.baselines.nowag import nowag
    from armor.engines.threads import threads as on_threads
    from armor.factorize.exact import factorize
    from armor.factorize.problem import Problem
    from armor.sparse.pattern import TWO_OF_FOUR

    draw = torch.Generator().manual_seed(0)
    found = []
    for rows, cols in SHAPES:
        weight = torch.randn(rows, cols, generator=draw)
        inputs = torch.randn(4 * cols, cols, generator=draw)
        inputs *= torch.rand(cols, generator=draw) + 0.1
        problem = Problem(weight, inputs.T @ inputs / len(inputs))
        start = nowag(problem, TWO_OF_FOUR)
        times = []
        for _ in range(2):
            with on_threads(threads):
                begin = time.perf_counter()
                factorize(problem, BLOCK, [start], ITERATIONS)
                times.append(time.perf_counter() - begin)
        found.append(min(times))
    return found


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that never wait."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solve", type=int, help=argparse.SUPPRESS)
    if threads := parser.parse_known_args()[0].solve:
        print(json.dumps(solve(threads)))
        return
    import torch
    from common import add_common, write_result

    add_common(parser, "idle_threads")
    arguments = parser.parse_args()
    rows = []
    for busy in (0, 2):
        for threads, looks in ((1, 0), *((2, one) for one in LOOKS)):
            command = [sys.executable, __file__, "--solve", str(threads)]
            setting = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(looks)}
            with neighbours(busy):
                env = {**os.environ, **setting}
                done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
            names = ("x".join(map(str, shape)) for shape in SHAPES)
            seconds = dict(zip(names, json.loads(done.stdout), strict=True))
            rows.append({"busy": busy, "threads": threads, "looks": looks, "seconds": seconds})
            print({**rows[-1], "seconds": {k: round(v, 2) for k, v in seconds.items()}}, flush=True)
    print(f"wrote {write_result(arguments, torch.device('cpu'), {'rows': rows})}")


if __name__ == "__main__":
    main()
