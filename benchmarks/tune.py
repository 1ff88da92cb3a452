"""Searches how the Triton kernels should cut their work on this GPU, and writes it where they look.

    python benchmarks/tune.py [--minutes 5]      # or: python benchmarks/runtime.py --tune

For the launches that pruned with default settings Llama-2-7B, Llama-3-8B and Qwen2.5-14B make, 1 to
32 rows, bfloat16. From the rule's tiling it changes one thing after the other and keeps what is
faster, measured under CUDA graphs with weights that no cache holds; a tiling whose numbers differ
from the rule's is not kept. What is found is added at once to this GPU's entries in
``src/armor/runtime/triton/tiles.json``, the most valuable first: one row and 16 of all models.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from math import inf
from operator import attrgetter
from typing import Any
from unittest.mock import patch

import torch
from common import Failures

from armor.bench.layers import random_layer
from armor.bench.shapes import Shape
from armor.bench.timing import interleaved
from armor.checkpoint.jsonfile import write_json
from armor.config import PruneConfig
from armor.run.plan import choose_block
from armor.runtime import Call
from armor.runtime.triton import backend as triton
from armor.runtime.triton import tiling as tilings
from armor.runtime.triton.tiling import Product, Tiling

#: Layers that share an input, of a decoder block of each model: outputs of each, inputs.
MODELS = {
    "Llama-2-7B": [([4096] * 3, 4096), ([4096], 4096), ([11008] * 2, 4096), ([4096], 11008)],
    "Llama-3-8B": [([4096, 1024, 1024], 4096), ([14336] * 2, 4096), ([4096], 14336)],
    "Qwen2.5-14B": [([5120, 1024, 1024], 5120), ([13824] * 2, 5120), ([5120], 13824)],
}
BATCHES = ((1, 16), (2, 4, 8, 32))  # the first of all models before the others
WORKING_SET = 2**28  # bytes of weights that take turns


def default_shape(name: str, out: int, cols: int) -> Shape:
    """A layer with the block that ``armor prune`` chooses."""
    return Shape(name, out, cols, choose_block((out, cols), PruneConfig.overhead_budget)[0])


def launches() -> Iterator[tuple[str, list[Shape], Product]]:
    """What is searched, in this order: by model, the layers of a launch and the key of it."""
    seen = set()
    for batches in BATCHES:
        for model, siblings in MODELS.items():
            for batch in batches:
                for outs, cols in siblings:
                    shapes = [default_shape("", out, cols) for out in outs]
                    for places in triton.launches(shapes, attrgetter("block")):
                        some = [shapes[place] for place in places]
                        rows = sum(shape.out_features for shape in some)
                        product = Product(rows, cols, some[0].block, batch, torch.bfloat16)
                        if product.key not in seen:
                            seen.add(product.key)
                            yield model, some, product


def search_all(minutes: float = inf) -> None:
    """Search every launch, for so long; each is written when found."""
    device = torch.device("cuda")
    end = time.monotonic() + 60 * minutes
    todo = list(launches())
    failures = Failures()
    for number, (model, shapes, product) in enumerate(todo):
        if time.monotonic() > end:
            print(f"the time is over: {len(todo) - number} of {len(todo)} are left to the rule")
            break
        with failures.of(product.key):
            found = asdict(search(product, weights(shapes, device), device))
            save(tilings.compiled_for(device), {product.key: found})
            print(f"{model}, {len(shapes)} layers, {product.key}: {found}", flush=True)
    failures.end()


def weights(shapes: Sequence[Shape], device: torch.device) -> list[list[Call]]:
    """Random layers of one launch, as often as no cache can hold."""
    found: list[list[Call]] = []
    taken = 0
    while taken < WORKING_SET:
        modules = [random_layer(shape, torch.bfloat16, device, prepare=False) for shape in shapes]
        found.append([module.call() for module in modules])
        taken += sum(p.nbytes for module in modules for p in module.parameters())
    return found


def search(product: Product, layers: list[list[Call]], device: torch.device) -> Tiling:
    """The fastest tiling that one change after the other leads to."""
    x = torch.randn(product.batch, product.features, device=device).to(product.dtype)
    best = tilings.by_rule(product)
    expected = run(layers[:1], x, best)
    for changes in tilings.alternatives(product):
        cuts = dict.fromkeys(replace(best, **change) for change in changes)
        cuts.pop(best, None)
        compile_together(layers, x, cuts)
        tried = {best: partial(run, layers, x, best)}
        for cut in cuts:
            if agrees(layers, x, cut, expected):
                tried[cut] = partial(run, layers, x, cut)
        named = {json.dumps(asdict(cut)): call for cut, call in tried.items()}
        seconds = interleaved(named, device, repeats=7)
        best = Tiling(**json.loads(min(seconds, key=lambda name: seconds[name])))
    return best


class _Compiled:
    """In the place of a kernel: is compiled for its arguments, and not launched."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return partial(self._kernel.warmup, grid=grid)


def compile_together(layers: list[list[Call]], x: torch.Tensor, cuts: Iterable[Tiling]) -> None:
    """Compile the kernels of several tilings at once, in threads; errors come up at the launch."""
    import triton as compiler

    from armor.runtime.triton import blocks_kernel, core_kernel

    if not hasattr(compiler, "AsyncCompileMode"):  # before 3.5: one by one at the launch
        return
    kernels = (blocks_kernel, "blocks_kernel"), (core_kernel, "core_kernel")
    with ExitStack() as undo:
        threads = undo.enter_context(ThreadPoolExecutor(os.cpu_count()))
        undo.enter_context(compiler.AsyncCompileMode(threads, ignore_errors=True))
        for module, name in kernels:
            undo.enter_context(patch.object(module, name, _Compiled(getattr(module, name))))
        for cut in cuts:
            with suppress(Exception):
                run(layers[:1], x, cut)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Search every launch and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=inf, help="start no search after so long")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tune.py measures Triton kernels on a GPU, and there is none", file=sys.stderr)
        sys.exit(2)
    search_all(options.minutes)


if __name__ == "__main__":
    main()
