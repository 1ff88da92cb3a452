"""Peak memory of `armor prune` against the depth of the model: it should be flat.

    python benchmarks/memory.py                 # 8, 16 and 32 layers of width 2048, bfloat16
    python benchmarks/memory.py --layers 4 --width 512 --mlp 1408 --out out

Random Llama models are written shard by shard, then pruned; the resident memory of the whole
process tree is sampled. All blocks are streamed through, but only `--include` is solved (of the
last block by default), as a solve takes the same memory in each. The bound is that of the design:
two decoder blocks in float32, the moments of the widest layer, both activation streams, and 1 GB.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from common import add_common, figure, save_figure, write_result
from transformers import LlamaConfig

from armor.checkpoint.shards import ShardWriter
from armor.demo.text import calibration_text, model_dir

VOCABULARY = 32000


def write_model(folder: Path, layers: int, width: int, mlp: int, shared: int = 2) -> int:
    """A random Llama in bfloat16 with the demo model's tokenizer; its bytes.

    `shared` query heads use the same keys and values.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128 // shared,
        max_position_embeddings=131072,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    for path in model_dir().iterdir():
        if path.suffix == ".json" and "tokenizer" in path.name:
            folder.mkdir(exist_ok=True)
            shutil.copy(path, folder)
    config.save_pretrained(folder)
    draw = torch.Generator().manual_seed(0)
    writer = ShardWriter(folder, 500_000_000)
    total = 0

    def add(name: str, *shape: int) -> None:
        nonlocal total
        if len(shape) == 1:
            tensor = torch.ones(shape, dtype=torch.bfloat16)
        else:
            tensor = (torch.randn(shape, generator=draw) / shape[1] ** 0.5).to(torch.bfloat16)
        writer.add(f"{name}.weight", tensor)
        total += tensor.nbytes

    add("model.embed_tokens", VOCABULARY, width)
    for index in range(layers):
        prefix = f"model.layers.{index}"
        for name, rows in (
            ("q", width),
            ("k", width // shared),
            ("v", width // shared),
            ("o", width),
        ):
            add(f"{prefix}.self_attn.{name}_proj", rows, width)
        add(f"{prefix}.mlp.gate_proj", mlp, width)
        add(f"{prefix}.mlp.up_proj", mlp, width)
        add(f"{prefix}.mlp.down_proj", width, mlp)
        add(f"{prefix}.input_layernorm", width)
        add(f"{prefix}.post_attention_layernorm", width)
    add("model.norm", width)
    add("lm_head", VOCABULARY, width)
    writer.finish()
    return total


def peak_of(command: list[str]) -> tuple[int, float]:
    """Peak resident bytes of a command and all below it, sampled, and its seconds."""
    begin = time.perf_counter()
    process = psutil.Popen(command)
    peak = 0
    while process.poll() is None:
        total = 0
        for each in [process, *_children(process)]:
            try:
                total += each.memory_info().rss
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return peak, time.perf_counter() - begin


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def bound(args: argparse.Namespace) -> dict[str, int]:
    """The parts of the bound, bytes."""
    block = 3 * args.width * args.width + 3 * args.width * args.mlp + 2 * args.width
    tokens = args.samples * args.seq_len
    return {
        "two_blocks": 2 * 4 * block,
        "moments": 2 * 4 * args.mlp**2,
        "activations": 2 * 4 * tokens * args.width,
        "allowance": 10**9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common(parser, "memory")
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--mlp", type=int, default=5632)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument(
        "--include", default="*.{last}.mlp.down_proj", help="layers to solve (%(default)s)"
    )
    parser.add_argument("--scratch", type=Path, help="where the models are written")
    args = parser.parse_args()
    parts = bound(args)
    limit = sum(parts.values())
    rows = []
    for layers in args.layers:
        with tempfile.TemporaryDirectory(dir=args.scratch) as home:
            size = write_model(Path(home) / "model", layers, args.width, args.mlp)
            text = Path(home) / "text.txt"
            text.write_text(calibration_text())
            command = [sys.executable, "-m", "armor", "prune", f"{home}/model"]
            command += ["--calibration", str(text), "--out", f"{home}/out", "--workers", "1"]
            command += ["--samples", str(args.samples), "--seq-len", str(args.seq_len)]
            command += ["--iterations", str(args.iterations)]
            command += ["--include", args.include.format(last=layers - 1)]
            peak, seconds = peak_of(command)
        rows.append({"layers": layers, "model_bytes": size, "peak_bytes": peak, "seconds": seconds})
        print(
            f"{layers:3d} layers, {size / 1e9:5.2f} GB: peak {peak / 1e9:.2f} GB"
            f" (bound {limit / 1e9:.2f} GB), {seconds:.0f} s",
            flush=True,
        )
        data = {"bound": parts, "bound_bytes": limit, "rows": rows}
        write_result(args, torch.device("cpu"), data)
    drawing, axes = figure()
    depths = [row["layers"] for row in rows]
    sizes = [row["model_bytes"] / 1e9 for row in rows]
    axes.plot(depths, sizes, "s--", color="#555555", label="the model on the disk")
    peaks = [row["peak_bytes"] / 1e9 for row in rows]
    axes.plot(depths, peaks, "o-", color="#0072b2", label="peak memory of armor prune")
    axes.axhline(limit / 1e9, color="#d55e00", linewidth=1, label="bound of the design")
    axes.set(xlabel="layers", ylabel="GB", ylim=(0, None), xticks=depths)
    axes.legend(frameon=False)
    save_figure(args, drawing)


if __name__ == "__main__":
    main()
