"""Searches how the Triton kernels should cut their work on this GPU, and writes it where they look.

    python benchmarks/tune.py            # or: python benchmarks/runtime.py --tune

For the launches of Llama-3-8B and Qwen2.5-14B (query, key and value together; gate and up
together; the output and down projections), 1 to 32 rows, bfloat16, blocks of 128. From the rule's
tiling it changes one thing after the other and keeps what is faster, measured under CUDA graphs
with weights that no cache holds; a tiling whose numbers differ from the rule's is not kept. Adds
this GPU's entries to ``src/armor/runtime/triton/tiles.json``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from functools import partial

import torch

from armor.bench.layers import random_layer
from armor.bench.shapes import MODELS, Shape
from armor.bench.timing import interleaved
from armor.checkpoint.jsonfile import write_json
from armor.runtime import Call
from armor.runtime.triton import backend as triton
from armor.runtime.triton import tiling as tilings
from armor.runtime.triton.tiling import Product, Tiling

BLOCK = 128
BATCHES = (1, 2, 4, 8, 16, 32)
WORKING_SET = 2**28  # bytes of weights that take turns
TOGETHER = (("q_proj", "k_proj", "k_proj"), ("q_proj",), ("gate_proj", "gate_proj"), ("down_proj",))


def main() -> None:
    """Search every launch and write the table."""
    if not torch.cuda.is_available():
        print("tune.py measures Triton kernels on a GPU, and there is none", file=sys.stderr)
        sys.exit(2)
    device = torch.device("cuda")
    for model, shapes in MODELS.items():
        for names in TOGETHER:
            sizes = [shapes[name] for name in names]
            layers = weights(sizes, device)
            found = {}
            for batch in BATCHES:
                product = Product(
                    sum(out for out, _ in sizes), sizes[0][1], BLOCK, batch, torch.bfloat16
                )
                found[product.key] = asdict(search(product, layers, device))
                print(f"{model} {'+'.join(names)}, {product.key}: {found[product.key]}", flush=True)
            save(torch.cuda.get_device_name(device), found)


def weights(sizes: list[tuple[int, int]], device: torch.device) -> list[list[Call]]:
    """Random layers of one launch, as often as no cache can hold."""
    launches: list[list[Call]] = []
    taken = 0
    while taken < WORKING_SET:
        modules = [
            random_layer(Shape("", *size, BLOCK), torch.bfloat16, device, prepare=False)
            for size in sizes
        ]
        launches.append([module.call() for module in modules])
        taken += sum(p.nbytes for module in modules for p in module.parameters())
    return launches


def search(product: Product, layers: list[list[Call]], device: torch.device) -> Tiling:
    """The fastest tiling that one change after the other leads to."""
    x = torch.randn(product.batch, product.features, device=device).to(product.dtype)
    best = tilings.by_rule(product)
    expected = run(layers[:1], x, best)
    for changes in tilings.alternatives(product):
        tried = {best: partial(run, layers, x, best)}
        for change in changes:
            cut = replace(best, **change)
            if cut not in tried and agrees(layers, x, cut, expected):
                tried[cut] = partial(run, layers, x, cut)
        named = {json.dumps(asdict(cut)): call for cut, call in tried.items()}
        seconds = interleaved(named, device, repeats=7)
        best = Tiling(**json.loads(min(seconds, key=lambda name: seconds[name])))
    return best


def run(layers: list[list[Call]], x: torch.Tensor, cut: Tiling) -> list[torch.Tensor]:
    """Each launch once; the outputs of the last."""
    outputs: list[torch.Tensor] = []
    for launch in layers:
        outputs = triton.product(x, launch, cut)
    return outputs


def agrees(
    layers: list[list[Call]], x: torch.Tensor, cut: Tiling, expected: list[torch.Tensor]
) -> bool:
    """Whether the kernel compiles for the tiling and computes the same, three times over."""
    try:
        for _ in range(3):
            found = run(layers[:1], x, cut)
            for y, wanted in zip(found, expected, strict=True):
                error = float((y.double() - wanted.double()).norm() / wanted.double().norm())
                if not error < 8 * torch.finfo(y.dtype).eps:
                    print(f"wrong numbers, not kept: {cut}, error {error:.3g}", flush=True)
                    return False
    except Exception as error:  # too much shared memory, too many registers: not for this GPU
        print(f"not for this GPU: {cut}: {type(error).__name__}", flush=True)
        return False
    return True


def save(name: str, found: dict[str, dict[str, object]]) -> None:
    """Add the entries of a GPU to the table."""
    table = json.loads(tilings.MEASURED.read_text()) if tilings.MEASURED.exists() else {}
    table.setdefault(name, {}).update(found)
    write_json(tilings.MEASURED, table)


if __name__ == "__main__":
    main()
