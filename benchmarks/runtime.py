"""The runtime against dense layers: every claim about its speed and memory, in one run.

    python benchmarks/runtime.py [--quick] [--tune]

On a GPU: bfloat16 layers of Llama-3-8B and Qwen2.5-14B under CUDA graphs, decode and prefill, and
a Llama-3-8B-shaped random model end to end. On a CPU: float32 and bfloat16 layers. Writes
``results/runtime-DEVICE.json`` and ``.png``; what this machine cannot measure is marked so.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import tune
from common import revision
from matplotlib.figure import Figure
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from armor.bench import report
from armor.bench.layers import Measured, measure_shape, random_layer
from armor.bench.mlp import MlpSpeed, measure_mlp
from armor.bench.model import Speed, measure_model
from armor.bench.roofline import measure_peaks
from armor.bench.shapes import Shape, parse_shapes
from armor.checkpoint.jsonfile import write_json
from armor.linear import prepare
from armor.runtime import backends

RESULTS = Path(__file__).resolve().parent / "results"
BLOCK = 128
NOT_MEASURED = "not measured yet"
#: (published) sizes of Llama-3-8B; the weights here are random.
LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU (%(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and batches, no model")
    parser.add_argument("--tune", action="store_true", help="first search tilings, see tune.py")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    gpu = device.type == "cuda"
    if options.tune:
        tune.main([])
    if gpu:
        text = "llama-3-8b,qwen2.5-14b"
        batches = [1, 16, 2048] if options.quick else [1, 2, 4, 8, 16, 32, 2048, 4096, 8192]
        dtypes = [torch.bfloat16]
    else:
        text = "4096x4096,4096x11008" + ("" if options.quick else ",11008x4096")
        batches = [1] if options.quick else [1, 4, 16, 64]
        dtypes = [torch.float32, torch.bfloat16]
    runs = []
    rows: list[Measured] = []
    for dtype in dtypes:
        peaks = measure_peaks(device, dtype)
        found = []
        for shape in parse_shapes(text, BLOCK):
            print(f"{shape.name}, {dtype}", flush=True)
            found += measure_shape(shape, batches, dtype, device, options.repeats)
        runs.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "bandwidth": peaks.bandwidth,
                "flops_per_second": peaks.flops,
                "layers": [row.to_dict(peaks) for row in found],
                "summary": report.slower_line(found),
            }
        )
        print(report.slower_line(found))
        rows = rows or found
    mlps: list[MlpSpeed] = []
    if gpu:
        print("whole MLPs", flush=True)
        rows_of_mlp = [batch for batch in batches if batch >= 2048]
        for inner in (11008, 14336):  # of Llama-2-7B and Llama-3-8B
            sizes = 4096, inner, BLOCK
            mlps += measure_mlp(*sizes, rows_of_mlp, dtypes[0], device, options.repeats)
    speeds: list[Speed] = []
    if gpu and not options.quick:
        speeds = measure_model(random_llama(LLAMA_3_8B, device), 512, 128, 3)
    results = claims(rows, mlps, speeds, gpu)
    for name, value in results.items():
        print(f"{name}: {value}")
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"runtime-{'gpu' if gpu else 'cpu'}"
    write_json(
        options.out / f"{name}.json",
        {
            "revision": revision(),
            "machine": report.machine(device),
            "block": BLOCK,
            "backends": {status.name: status.reason or "usable" for status in backends()},
            "claims": results,
            "runs": runs,
            "mlps": [asdict(speed) for speed in mlps],
            "model": [speed.to_dict() for speed in speeds],
        },
    )
    title = f"{report.machine(device)['name']}, {runs[0]['dtype']}"
    draw(rows, options.out / f"{name}.png", title)


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

    def worst(wanted: bool, low: int, high: int) -> Any:
        found = [ratio for (_, batch), ratio in ratios.items() if low <= batch <= high]
        return min(found) if wanted and found else NOT_MEASURED

    dense = {row.shape.name: row.weight_bytes for row in rows if row.contender == "dense"}
    excess = [
        row.weight_bytes / dense[row.shape.name] - allowed_share(row.shape, dense[row.shape.name])
        for row in rows
        if row.contender == "ARMOR"
    ]
    prefill: dict[bool, Any] = {True: NOT_MEASURED, False: NOT_MEASURED}
    if mlps:
        prefill[True] = min(mlp.dense / mlp.whole for mlp in mlps)
        prefill[False] = min(mlp.dense / mlp.layers for mlp in mlps)
    decode: Any = NOT_MEASURED
    if speeds:
        by_name = {speed.contender: speed.decode for speed in speeds}
        decode = by_name["ARMOR"] / by_name["dense"]
    return {
        "CPU batch 1, speed-up (target 1.0, aim 1.5)": worst(not gpu, 1, 1),
        "GPU prefill of 2048 to 8192 rows, MLP as one, speed-up (target 1.35)": prefill[True],
        "the same layer by layer": prefill[False],
        "all of these MLPs ran as one": all(mlp.is_one for mlp in mlps) if mlps else NOT_MEASURED,
        "GPU decode of 1 to 16 rows, speed-up (target 1.3)": worst(gpu, 1, 16),
        "GPU decode end to end, Llama-3-8B shape, speed-up (target 1.25)": decode,
        "weights above (packed core + wrappers), share of dense (target 0.02)": max(excess),
    }


def allowed_share(shape: Shape, dense_bytes: int) -> float:
    """Kept values, 2-bit positions and wrappers as a share of the dense bytes."""
    weights = shape.out_features * shape.in_features
    wrappers = (shape.out_features + shape.in_features) * (shape.block or 0)
    item = dense_bytes // weights
    return 0.5 + 1 / (8 * item) + wrappers / weights


def random_llama(sizes: dict[str, int], device: torch.device) -> LlamaForCausalLM:
    """A Llama of these sizes in bfloat16, random packed linears, built without a dense copy."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16).eval()
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and name != "lm_head":
            shape = Shape(name, linear.out_features, linear.in_features, BLOCK)
            parent, _, child = name.rpartition(".")
            layer = random_layer(shape, torch.bfloat16, device, prepare=False)
            setattr(model.get_submodule(parent), child, layer)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                made = torch.randn(parameter.shape, dtype=parameter.dtype, device=device)
                setattr(module, name, nn.Parameter(0.02 * made, requires_grad=False))
    rotary = model.model.rotary_emb
    with device:
        model.model.rotary_emb = type(rotary)(model.config)
    model.generation_config.eos_token_id = None
    prepare(model)
    return model


if __name__ == "__main__":
    main()
