"""Whole-process wall time of `armor prune` against llm-compressor's SparseGPT, run in turn.

    python benchmarks/prune_time.py MODEL CALIBRATION --other-python ENV/bin/python

Prints seconds, peak memory and the ratio pair by pair, and writes JSON. Both do all of their work:
start, imports, loading, calibration, pruning, saving. The first pair is a warm-up (compilation).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from common import machine, versions

HERE = Path(__file__).parent


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command (and its children)."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed with status {status}: {' '.join(command)}")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("--other-python", help="python of an environment with llmcompressor")
    parser.add_argument("--samples", default="128")
    parser.add_argument("--seq-len", default="256")
    parser.add_argument("--block-size", default="16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "prune_time.json")
    args = parser.parse_args()
    windows = ["--samples", args.samples, "--seq-len", args.seq_len]
    rows = []
    for run in range(args.runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "armor", "prune", args.model, *windows]
            command += ["--calibration", args.calibration, "--block-size", args.block_size]
            command += ["--bos", "never"]  # as the other does
            ours = timed([*command, "--out", f"{folder}/armor"])
            row = {"armor_seconds": ours[0], "armor_peak_bytes": ours[1]}
            if args.other_python:
                script = str(HERE / "llmcompressor_sparsegpt.py")
                command = [args.other_python, script, args.model, args.calibration]
                other = timed([*command, f"{folder}/other", *windows])
                row |= {"other_seconds": other[0], "other_peak_bytes": other[1]}
                row["ratio"] = ours[0] / other[0]
        print({name: round(value, 3) for name, value in row.items()}, flush=True)
        if run:
            rows.append(row)
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print("medians", {name: round(value, 3) for name, value in medians.items()})
    result = {
        "date": date.today().isoformat(),
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "arguments": {
            name: str(value)
            for name, value in vars(args).items()
            if name not in ("json", "other_python")
        },
        "load_average": os.getloadavg(),
        "rows": rows,
        "medians": medians,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
