"""Layers and a small model on a CPU as it is, or limited to AVX2: against dense, in turns.

    python benchmarks/runtime_processors.py [--avx2] [--dtype float32] [--model FOLDER]

``--avx2`` limits torch, its BLAS and armor's kernels alike, before they are loaded. Each call adds
its cases to ``results/runtime-processors.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NUMBA_CPU_NAME": "znver3",
    "NUMBA_CPU_FEATURES": "+64bit,+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,"
    "+f16c,+bmi,+bmi2,+lzcnt,+movbe,+cx16",
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--model", type=Path, help="a pruned model; without it layers are timed")
    parser.add_argument("--shapes", default="4096x4096,11008x4096")
    parser.add_argument("--batches", default="1,4,16,64,128")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "runtime-processors.json")
    options = parser.parse_args()
    if options.avx2 and os.environ.get("NUMBA_CPU_NAME") != AVX2["NUMBA_CPU_NAME"]:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | AVX2)
    measure(options)


def measure(options: argparse.Namespace) -> None:
    """One dtype on one instruction set."""
    import torch
    from common import revision

    from armor.bench import report
    from armor.bench.layers import measure_shape
    from armor.bench.shapes import parse_shapes
    from armor.simd.processor import instruction_set

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype, cpu = getattr(torch, options.dtype), torch.device("cpu")
    found: dict[str, Any] = {
        "machine": report.machine(cpu),
        "limited": "torch, BLAS and armor to AVX2" if options.avx2 else None,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }
    if options.model:
        found |= whole_model(options.model, dtype)
    else:
        batches = [int(batch) for batch in options.batches.split(",")]
        rows = []
        for shape in parse_shapes(options.shapes, 128):
            rows += measure_shape(shape, batches, dtype, cpu, options.repeats)
        found["speed"] = {
            contender: {
                f"{name} {batch}": round(ratio, 3)
                for (name, batch), ratio in report.speedups(rows, contender).items()
            }
            for contender in ("2:4", "ARMOR")
        }
        found["kernels"] = {str(row.batch): row.kernel for row in rows if row.contender == "ARMOR"}
        found["dense_seconds"] = {
            f"{row.shape.name} {row.batch}": row.seconds for row in rows if row.contender == "dense"
        }
    kind = "model" if options.model else "layers"
    key = f"{instruction_set()}, {options.dtype}, {kind}"
    found |= {"date": date.today().isoformat(), "revision": revision()}
    print(key, json.dumps(found, indent=1))
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.write_text(json.dumps({**known, key: found}, indent=1) + "\n")


def whole_model(folder: Path, dtype: Any) -> dict[str, Any]:
    """Prefill of 128 tokens and decoding of 24, against the same model with dense layers."""
    from transformers import AutoModelForCausalLM

    import armor  # noqa: F401  (teaches transformers the format)
    from armor.bench.model import measure_model

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.generation_config.eos_token_id = None
    packed, dense = measure_model(model, 128, 24, 3)
    return {
        "prefill": round(packed.prefill / dense.prefill, 3),
        "decode": round(packed.decode / dense.decode, 3),
        "bytes": round(packed.bytes / dense.bytes, 3),
        "tokens_a_second": {
            one.contender: [round(one.prefill), round(one.decode, 1)] for one in (packed, dense)
        },
    }


if __name__ == "__main__":
    main()
