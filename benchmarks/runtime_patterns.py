"""Layers of other patterns than 2:4 on the CPU, against dense layers and the reference backend.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/runtime_patterns.py

Writes ``results/runtime_patterns.json``. Times are medians; dense and packed layers take turns,
with weights that no cache holds.
"""

from __future__ import annotations

import argparse
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from common import revision

from armor.bench import report
from armor.bench.layers import measure_shape, random_layer
from armor.bench.shapes import Shape, parse_shapes
from armor.bench.timing import interleaved
from armor.checkpoint.jsonfile import write_json
from armor.runtime import use
from armor.sparse.pattern import Pattern

RESULTS = Path(__file__).resolve().parent / "results"
CPU = torch.device("cpu")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="4096x4096")
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--patterns", default="2:4,4:8,1:4,50%")
    parser.add_argument("--batches", default="1,4,32,128")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batches = [int(batch) for batch in options.batches.split(",")]
    began, rows = time.time(), []
    for dtype in (torch.float32, torch.bfloat16):
        for text in options.patterns.split(","):
            shape = parse_shapes(options.shape, options.block, Pattern.parse(text))[0]
            found = measure_pattern(shape, batches, dtype, options.repeats)
            for row in found:
                speed, slow = row["dense"] / row["armor"], row["reference"] / row["dense"]
                print(
                    f"{row['dtype']} {text} batch {row['batch']}:"
                    f" dense {row['dense'] * 1e3:.2f} ms,"
                    f" ARMOR {speed:.2f}x as fast, reference {slow:.1f}x as slow",
                    flush=True,
                )
            rows += found
    options.out.mkdir(parents=True, exist_ok=True)
    about = report.machine(CPU) | {"date": date.today().isoformat()}
    result = {
        "revision": revision(),
        "machine": about,
        "seconds": time.time() - began,
        "rows": rows,
    }
    write_json(options.out / "runtime_patterns.json", result)


def measure_pattern(
    shape: Shape, batches: list[int], dtype: torch.dtype, repeats: int
) -> list[dict[str, Any]]:
    """Seconds of a call, dense, core alone, ARMOR, and ARMOR on `reference`, by rows of input."""
    measured = measure_shape(shape, batches, dtype, CPU, repeats)
    layer = random_layer(shape, dtype, CPU)
    found = []
    for batch in batches:
        case = {row.contender: row for row in measured if row.batch == batch}
        x = torch.randn(batch, shape.in_features).to(dtype)
        with use("reference"):
            unpacked = interleaved({"it": lambda x=x: layer(x)}, CPU, 3)["it"]
        found.append(
            {
                "shape": shape.name,
                "block": shape.block,
                "pattern": str(shape.pattern),
                "dtype": str(dtype).removeprefix("torch."),
                "batch": batch,
                "dense": case["dense"].seconds,
                "core": case["2:4"].seconds,
                "armor": case["ARMOR"].seconds,
                "reference": unpacked,
                "backend": case["ARMOR"].backend,
                "weight_share": case["ARMOR"].weight_bytes / case["dense"].weight_bytes,
            }
        )
    return found


if __name__ == "__main__":
    main()
