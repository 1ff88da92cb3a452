"""Two local workers against one, on a random Llama of equal matrices.

    python benchmarks/workers.py                # wants an idle machine with 2 cores

Whole commands, starting and writing included, in turn. With the dense target all layers are solved
at once; with the compensated one a stage waits for the one before it, and the output projections
and down_proj have nothing beside them. Checks that the bytes are the same. Writes workers.json.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import add_common, write_result
from memory import write_model

from armor.demo.text import calibration_text


def run(home: Path, target: str, workers: int) -> tuple[float, str]:
    """Seconds of one run, and a hash of the weights it wrote."""
    out = home / f"{target}-{workers}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "armor", "prune", str(home / "model"), "--out", str(out)]
    command += ["--calibration", str(home / "text.txt"), "--samples", "16", "--seq-len", "128"]
    begin = time.perf_counter()
    subprocess.run(
        [*command, "--target", target, "--workers", str(workers)], check=True, capture_output=True
    )
    seconds = time.perf_counter() - begin
    digest = hashlib.sha256()
    for shard in sorted(out.glob("*.safetensors")):
        digest.update(shard.read_bytes())
    return seconds, digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_common(parser, "workers")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--targets", nargs="+", default=["dense", "compensated"])
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        write_model(home / "model", arguments.layers, arguments.width, arguments.width, shared=1)
        (home / "text.txt").write_text(calibration_text())
        for target in arguments.targets:
            seconds: dict[int, list[float]] = {1: [], 2: []}
            digests = set()
            for _ in range(arguments.runs):
                for workers in seconds:
                    taken, digest = run(home, target, workers)
                    seconds[workers].append(taken)
                    digests.add(digest)
            if len(digests) > 1:
                raise SystemExit(f"{target}: two workers wrote other bytes than one")
            ratio = min(seconds[1]) / min(seconds[2])
            found[target] = {"seconds_1": seconds[1], "seconds_2": seconds[2], "ratio": ratio}
            print(
                f"{target}: one worker {min(seconds[1]):.1f} s, two {min(seconds[2]):.1f} s:"
                f" {ratio:.2f} times as fast, the same bytes",
                flush=True,
            )
    print(f"wrote {write_result(arguments, torch.device('cpu'), found)}")


if __name__ == "__main__":
    main()
