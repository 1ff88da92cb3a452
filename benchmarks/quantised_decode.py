"""Tokens a second of a whole model on the CPU, decoding one sequence: every form in turns.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/quantised_decode.py PRUNED --threads 2

PRUNED is a 2:4 checkpoint in 16 bits. Rounded forms have random codes in place of its values, which
take the same time. "torch int8" and "torch int4" are PyTorch's own kernels for dense weights in few
bits (a scale a row; groups of 64). Writes results/quantised_decode.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import add_common, revision, smollm2_folder, use_threads, write_result
from random_codes import random_codes
from torch import Tensor, nn

import armor
from armor.bench.timing import interleaved
from armor.errors import ArmorError
from armor.linear import ArmorLinear, armor_layers, held_bytes
from armor.models.load import load_model
from armor.models.modules import put_module

GROUP = 64  # of torch's int4


class TorchInt8(nn.Module):
    """A dense bfloat16 layer in int8 with a scale a row, by PyTorch's kernel."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scales = weight.float().abs().amax(1) / 127
        codes = (weight.float() / scales[:, None]).round().to(torch.int8)
        self.register_buffer("weight", codes)
        self.register_buffer("scales", scales.to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.weight, self.scales)
        return y.view(*x.shape[:-1], -1)


class TorchInt4(nn.Module):
    """A dense bfloat16 layer in int4 with a scale for each `GROUP` weights, by PyTorch's kernel."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, cols = weight.shape
        groups = weight.float().view(rows, cols // GROUP, GROUP)
        scales = groups.abs().amax(2) / 7
        codes = (groups / scales[..., None]).round().add(8).clamp(0, 15).to(torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.view(rows, cols), 1)
        both = torch.stack((scales, torch.zeros_like(scales)), dim=-1).transpose(0, 1)
        self.register_buffer("weight", packed)
        self.register_buffer("scales", both.contiguous().to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.weight, GROUP, self.scales)
        return y.view(*x.shape[:-1], -1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser, "quantised_decode")
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--model", type=Path, help="the dense one (default: SmolLM2-135M)")
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def changed(network: Any, change: Callable[[str, nn.Module], nn.Module]) -> Any:
    """A copy with other linears in the decoder: those that `network` has pruned or may prune."""
    copy = deepcopy(network)
    names = [name for name, _ in armor_layers(copy)] or [
        name
        for name, module in copy.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    for name in names:
        put_module(copy, name, change(name, copy.get_submodule(name)))
    return copy


def as_codes(core: str, _name: str, module: nn.Module) -> nn.Module:
    assert isinstance(module, ArmorLinear)
    return random_codes(module.packed(), core, wrappers=True, bias=module.bias)


def generate(network: Any, ids: Tensor, tokens: int) -> None:
    network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )


def main() -> None:
    args = parse()
    use_threads(args.threads)
    torch.manual_seed(0)
    try:
        model = str(args.model or smollm2_folder())
        half = armor.load(args.pruned)
        dense = load_model(model, torch.bfloat16, "cpu")
    except ArmorError as error:
        raise SystemExit(f"error: {error}") from None
    contenders = {
        "dense float32": deepcopy(dense).float(),
        "dense bfloat16": dense,
        "16-bit": half,
        **{core: changed(half, partial(as_codes, core)) for core in ("int8", "fp8", "int4")},
        "torch int8": changed(dense, lambda _, module: TorchInt8(module.weight)),
        "torch int4": changed(dense, lambda _, module: TorchInt4(module.weight)),
    }
    ids = torch.randint(
        1, dense.config.vocab_size, (1, args.prompt), dtype=torch.int64, device="cpu"
    )
    runs: dict[str, Callable[[], object]] = {}
    for name, network in contenders.items():
        for kind, count in (("short", 1), ("long", 1 + args.tokens)):
            runs[f"{name}, {kind}"] = partial(generate, network, ids, count)
    seconds = interleaved(runs, torch.device("cpu"), args.repeats)
    rows = []
    for name, network in contenders.items():
        decode = (seconds[f"{name}, long"] - seconds[f"{name}, short"]) / args.tokens
        buffers = sum(buffer.nbytes for buffer in network.buffers())
        rows.append({"form": name, "decode": 1 / decode, "bytes": held_bytes(network) + buffers})
        print(f"{name}: {1 / decode:.2f} tokens a second", flush=True)
    given = argparse.Namespace(**vars(args) | {"model": "SmolLM2-135M", "pruned": args.pruned.name})
    write_result(given, torch.device("cpu"), {"revision": revision(), "rows": rows})


if __name__ == "__main__":
    main()
