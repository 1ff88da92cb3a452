"""A whole model on a GPU, pruned against dense: its blocks under CUDA graphs, and ``generate``.

    python benchmarks/model_gpu.py [--layers 8]     # on a GPU
    python benchmarks/model_gpu.py --small          # a test without one: no result

A random Llama-2-7B with fewer decoder blocks and the wrappers of a default prune. First its blocks
and its head, each recorded as a CUDA graph: one token (decoding, but for the attention to earlier
ones) and prompts; what 32 blocks would take follows. Then ``generate`` with a static cache, which
compiles the decoding step. Writes model_gpu.json, after each part what there is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import Failures, add_common, use_threads, write_result
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from tune import default_shape

from armor.bench.layers import random_layer
from armor.bench.model import dense_twin, measure_model
from armor.bench.timing import interleaved
from armor.linear import prepare

#: (published) sizes of models; the weights here are random.
LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def random_llama(sizes: dict[str, int], device: torch.device) -> LlamaForCausalLM:
    """A Llama of these sizes in bfloat16, random packed linears, built without a dense copy."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16).eval()
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and name != "lm_head":
            shape = default_shape(name, linear.out_features, linear.in_features)
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


def measure_blocks(model: LlamaForCausalLM, rows: Sequence[int], repeats: int) -> list[dict]:
    """Seconds of all blocks and of the head, for one sequence of each of so many tokens."""
    decoder, device = model.model, model.device
    found = []
    for contender in ("ARMOR", "dense"):
        with dense_twin(model) if contender == "dense" else nullcontext():
            for count in rows:
                x = torch.randn(1, count, model.config.hidden_size, device=device)
                x = x.to(torch.bfloat16)
                with torch.no_grad():
                    turns = decoder.rotary_emb(x, torch.arange(count, device=device)[None])

                def blocks(x: Tensor = x, turns: Any = turns) -> Tensor:
                    for layer in decoder.layers:
                        x = layer(x, position_embeddings=turns)
                    return x

                def head(x: Tensor = x) -> Tensor:
                    return model.lm_head(decoder.norm(x[:, -1:]))

                seconds = interleaved({"blocks": blocks, "head": head}, device, repeats)
                found.append({"contender": contender, "rows": count, **seconds})
    return found


def speedups(rows: list[dict[str, Any]], layers: int) -> dict[str, float]:
    """Of Llama-2-7B with all its blocks, from the times of `layers` of them and of the head."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        seconds = row["blocks"] * LLAMA_2_7B["num_hidden_layers"] / layers + row["head"]
        found.setdefault(row["rows"], {})[row["contender"]] = seconds
    return {
        f"32 blocks and the head, {rows} tokens at once": of["dense"] / of["ARMOR"]
        for rows, of in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser, "model_gpu")
    parser.add_argument("--small", action="store_true", help="on the CPU: a test, no result")
    parser.add_argument("--layers", type=int, default=8, help="decoder blocks (%(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 2048])
    parser.add_argument("--prompt", type=int, default=512, help="of generate (%(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="to generate (%(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    if not arguments.small and not torch.cuda.is_available():
        print("model_gpu needs a CUDA device and found none; --small tries it", file=sys.stderr)
        raise SystemExit(2)
    use_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device("cpu" if arguments.small else "cuda")
    sizes = (SMALL if arguments.small else LLAMA_2_7B) | {"num_hidden_layers": arguments.layers}
    model = random_llama(sizes, device)
    data: dict[str, Any] = {"sizes": sizes, "blocks": [], "speedups": {}, "generate": []}
    failures = Failures()

    def save() -> Path:
        data["failures"] = failures.found
        return write_result(arguments, device, data)

    with failures.of("blocks"):
        data["blocks"] = measure_blocks(model, arguments.rows, arguments.repeats)
        data["speedups"] = speedups(data["blocks"], arguments.layers)
    save()
    for what, speedup in data["speedups"].items():
        print(f"{what}: {speedup:.2f} times as fast as dense", flush=True)
    with failures.of("generate"):
        repeats = max(1, arguments.repeats // 5)
        for speed in measure_model(model, arguments.prompt, arguments.tokens, repeats):
            data["generate"].append(speed.to_dict())
            print(
                f"generate, {speed.contender}: prefill {speed.prefill:,.0f}, decode"
                f" {speed.decode:,.1f} tokens a second, {speed.bytes / 1e9:.2f} GB"
            )
    print(f"wrote {save()}")
    failures.end()


if __name__ == "__main__":
    main()
