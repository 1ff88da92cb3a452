"""One layer with a rounded core on the CPU, beside the same layer in 16 bits and dense ones.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/quantised_speed.py --threads 2

Writes results/quantised_speed.json. All take turns, with weights that no cache holds; times are
medians. ``--processor haswell`` compiles for AVX2 instead of what the processor has (dense layers
are PyTorch's, and keep all of it).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from copy import deepcopy
from itertools import cycle
from typing import Any

FEATURES = {"haswell": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse4.2"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="4096x4096", help="OUTxIN (%(default)s)")
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--batches", default="1,4,16,64")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--processor", choices=FEATURES)
    from common import add_common

    add_common(parser, "quantised_speed")
    return parser.parse_args()


def main() -> None:
    args = parse()
    import torch
    from common import revision, use_threads, write_result
    from random_codes import random_codes

    from armor.bench.layers import random_layer
    from armor.bench.shapes import parse_shapes
    from armor.bench.timing import interleaved
    from armor.linear import ArmorLinear

    use_threads(args.threads)
    torch.manual_seed(0)
    shape = parse_shapes(args.shape, args.block)[0]
    cpu = torch.device("cpu")
    half = random_layer(shape, torch.bfloat16, cpu)

    def rounded(core: str, wrappers: bool) -> ArmorLinear:
        return random_codes(half.packed(), core, wrappers)

    def linear(dtype: torch.dtype) -> torch.nn.Linear:
        return torch.nn.Linear(
            shape.in_features, shape.out_features, bias=False, dtype=dtype, device="cpu"
        )

    contenders: dict[str, torch.nn.Module] = {
        "dense float32": linear(torch.float32),
        "dense bfloat16": linear(torch.bfloat16),
        "16-bit": half,
        "int8 core": rounded("int8", wrappers=False),
        "int8": rounded("int8", wrappers=True),
        "int4": rounded("int4", wrappers=True),
        "fp8": rounded("fp8", wrappers=True),
    }
    rows = []
    for batch in map(int, args.batches.split(",")):
        runs = {name: _run(module, batch) for name, module in contenders.items()}
        seconds = interleaved(runs, cpu, args.repeats)
        rows.append({"batch": batch, "seconds": seconds})
        text = ", ".join(f"{name} {time * 1e3:.3f} ms" for name, time in seconds.items())
        print(f"batch {batch}: {text}", flush=True)
    held = {name: sum(p.nbytes for p in own.parameters()) for name, own in contenders.items()}
    write_result(args, cpu, {"revision": revision(), "bytes": held, "rows": rows})


def _run(module: Any, batch: int) -> Callable[[], object]:
    """Calls of copies of `module` in turn, so many that no cache holds them."""
    import torch

    size = sum(parameter.nbytes for parameter in module.parameters())
    copies = [module, *(deepcopy(module) for _ in range(192 * 2**20 // size))]
    parameter = next(p for p in module.parameters() if p.is_floating_point())
    x = torch.randn(batch, module.in_features, dtype=torch.float32, device="cpu")
    given, turn = x.to(parameter.dtype), cycle(copies)
    return lambda: next(turn)(given)


if __name__ == "__main__":
    options = parse()
    if options.processor:  # before Numba loads
        os.environ["NUMBA_CPU_NAME"] = options.processor
        os.environ["NUMBA_CPU_FEATURES"] = FEATURES[options.processor]
    main()
