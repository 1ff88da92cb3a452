"""The runtime against dense layers: every claim about its speed and memory, in one run.

    python benchmarks/runtime.py [--quick] [--tune]

On a GPU: bfloat16 layers of Llama-2-7B, Llama-3-8B and Qwen2.5-14B and whole MLPs under CUDA
graphs, decode and prefill, and a Llama-3-8B-shaped random model end to end. On a CPU: float32 and
bfloat16 layers. Blocks are those of a default prune. Writes ``results/runtime-DEVICE.json``, after
each shape what there is, and ``.png``; what this machine cannot measure is marked so.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import tune
from common import Failures, revision
from matplotlib.figure import Figure
from model_gpu import LLAMA_3_8B, random_llama

from armor.bench import report
from armor.bench.layers import Measured, measure_shape
from armor.bench.mlp import MlpSpeed, measure_mlp
from armor.bench.model import Speed, measure_model
from armor.bench.roofline import measure_peaks
from armor.bench.shapes import Shape, parse_shapes
from armor.checkpoint.jsonfile import write_json
from armor.runtime import backends

RESULTS = Path(__file__).resolve().parent / "results"
NOT_MEASURED = "not measured yet"
WIDE = 2**25  # weights of a layer that is called wide: it takes longer than its launches


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU (%(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and batches, no model")
    parser.add_argument("--tune", action="store_true", help="first search tilings, see tune.py")
    parser.add_argument("--shapes", help="OUTxIN,... or names of models in the place of these")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # streams and graphs are of the current one
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    gpu = device.type == "cuda"
    if options.tune:
        tune.main([])
    if gpu:
        text = "11008x4096,4096x11008,llama-3-8b" + ("" if options.quick else ",qwen2.5-14b")
        batches = [1, 16, 2048] if options.quick else [1, 2, 4, 8, 16, 32, 2048, 4096, 8192]
        dtypes = [torch.bfloat16]
    else:
        text = "4096x4096,4096x11008" + ("" if options.quick else ",11008x4096")
        batches = [1] if options.quick else [1, 4, 16, 64]
        dtypes = [torch.float32, torch.bfloat16]
    runs: list[dict[str, Any]] = []
    rows: list[Measured] = []  # in the first dtype
    mlps: list[MlpSpeed] = []
    speeds: list[Speed] = []
    failures = Failures()
    path = options.out / f"runtime-{'gpu' if gpu else 'cpu'}.json"

    def save() -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        data = {
            "revision": revision(),
            "machine": report.machine(device),
            "backends": {status.name: status.reason or "usable" for status in backends()},
            "claims": claims(rows, mlps, speeds, gpu),
            "runs": runs,
            "mlps": [asdict(speed) for speed in mlps],
            "model": [speed.to_dict() for speed in speeds],
            "failures": failures.found,
        }
        write_json(path, data)

    if gpu:
        for inner in (11008, 14336):  # of Llama-2-7B and Llama-3-8B
            print(f"whole MLP, 4096x{inner}", flush=True)
            block = tune.default_shape("", inner, 4096).block
            sizes = 4096, inner, block, [1, 16, 2048, 4096, 8192]
            with failures.of(f"MLP of {inner}"):
                mlps += measure_mlp(*sizes, dtypes[0], device, options.repeats)
            save()
    for dtype in dtypes:
        peaks = measure_peaks(device, dtype)
        found: list[Measured] = []
        layers: list[dict[str, object]] = []
        runs.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "bandwidth": peaks.bandwidth,
                "flops_per_second": peaks.flops,
                "layers": layers,
            }
        )
        for name, out, into, *_ in parse_shapes(options.shapes or text, None):
            shape = tune.default_shape(name, out, into)
            print(f"{name}, blocks of {shape.block}, {dtype}", flush=True)
            new: list[Measured] = []
            with failures.of(f"{name}, {dtype}"):
                new = measure_shape(shape, batches, dtype, device, options.repeats)
            found += new
            layers += [row.to_dict(peaks) for row in new]
            runs[-1]["summary"] = report.slower_line(found) if found else "nothing was measured"
            if dtype == dtypes[0]:
                rows += new
            save()
        print(runs[-1]["summary"])
    if gpu and not options.quick:
        with failures.of("model"):
            speeds += measure_model(random_llama(LLAMA_3_8B, device), 512, 128, 3)
        save()
    for name, value in claims(rows, mlps, speeds, gpu).items():
        print(f"{name}: {value}")
    draw(rows, path.with_suffix(".png"), f"{report.machine(device)['name']}, {runs[0]['dtype']}")
    failures.end()


def draw(rows: list[Measured], path: Path, title: str) -> None:
    """Speed against dense over the batch, one colour a layer, ARMOR solid and 2:4 dashed."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1.0, color="grey", linewidth=1)
    names = list(dict.fromkeys(row.shape.name for row in rows))
    for contender, style in (("ARMOR", "-o"), ("2:4", "--")):
        ratios = report.speedups(rows, contender)
        for number, name in enumerate(names):
            points = sorted((batch, r) for (layer, batch), r in ratios.items() if layer == name)
            axes.plot(
                [batch for batch, _ in points],
                [ratio for _, ratio in points],
                style,
                color=f"C{number % 10}",
                label=f"{name} {contender}",
                markersize=4,
            )
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows of input")
    axes.set_ylabel("speed, dense = 1")
    axes.set_title(title)
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(path, dpi=150)


def claims(
    rows: list[Measured], mlps: list[MlpSpeed], speeds: list[Speed], gpu: bool
) -> dict[str, Any]:
    """Each claim with the worst speed-up or memory among the cases it is about."""
    ratios = report.speedups(rows, "ARMOR")
    weights = {row.shape.name: row.shape.out_features * row.shape.in_features for row in rows}
    dense = {row.shape.name: row.weight_bytes for row in rows if row.contender == "dense"}

    def worst(wanted: bool, low: int, high: int, least: int = 0) -> Any:
        found = (
            ratio
            for (name, batch), ratio in ratios.items()
            if wanted and low <= batch <= high and weights[name] >= least
        )
        return min(found, default=NOT_MEASURED)

    def worst_mlp(low: int, high: int, as_one: bool) -> Any:
        found = (
            mlp.dense / (mlp.whole if as_one else mlp.layers)
            for mlp in mlps
            if low <= mlp.rows <= high
        )
        return min(found, default=NOT_MEASURED)

    excess = (
        row.weight_bytes / dense[row.shape.name] - allowed_share(row.shape, dense[row.shape.name])
        for row in rows
        if row.contender == "ARMOR"
    )
    many = [mlp.is_one for mlp in mlps if mlp.rows >= 2048]
    decode: Any = NOT_MEASURED
    if speeds:
        by_name = {speed.contender: speed.decode for speed in speeds}
        decode = by_name["ARMOR"] / by_name["dense"]
    wide = f"layers of {WIDE:,} weights and more"
    return {
        "CPU batch 1, speed-up (target 1.0, aim 1.5)": worst(not gpu, 1, 1),
        "GPU prefill of 2048 to 8192 rows, MLP as one, speed-up (target 1.35)": worst_mlp(
            2048, 8192, True
        ),
        "the same layer by layer": worst_mlp(2048, 8192, False),
        "all of these MLPs ran as one": all(many) if many else NOT_MEASURED,
        f"GPU prefill of 2048 to 8192 rows, {wide}, each alone": worst(gpu, 2048, 8192, WIDE),
        "GPU decode of 1 to 16 rows, speed-up (target 1.3)": worst(gpu, 1, 16),
        f"GPU decode of 1 to 16 rows, {wide}, each alone": worst(gpu, 1, 16, WIDE),
        "GPU decode of 1 to 16 rows, MLP as one": worst_mlp(1, 16, True),
        "GPU decode end to end, Llama-3-8B shape, speed-up (target 1.25)": decode,
        "weights above (packed core + wrappers), share of dense (target 0.02)": max(
            excess, default=NOT_MEASURED
        ),
    }


def allowed_share(shape: Shape, dense_bytes: int) -> float:
    """Kept values, 2-bit positions and wrappers as a share of the dense bytes."""
    weights = shape.out_features * shape.in_features
    wrappers = (shape.out_features + shape.in_features) * (shape.block or 0)
    item = dense_bytes // weights
    return 0.5 + 1 / (8 * item) + wrappers / weights


if __name__ == "__main__":
    main()
