"""How the Triton kernels cut a product into programs: measured for some GPUs, else by rule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from armor.triton import is_older_than

# Written by ``python benchmarks/tune.py`` on a GPU: {see `compiled_for`: {key: fields of Tiling}}.
MEASURED = Path(__file__).with_name("tiles.json")
FUSE_ITEMS = 32  # more inputs than this and A x is a product worth a launch of its own
SMALLEST_TILE = 16  # outputs of a program
# Bytes of B that all tiles read again, from the cache, up to which that beats a launch: 3 us, less
# than a launch and its bytes on an H100, a little more on an H200.
_READ_AGAIN = 2**24
_TALL = 128  # outputs of a program that has B in it
_PROGRAMS = 4  # a multiprocessor: enough to hide the latency of memory


@dataclass(frozen=True)
class Tiling:
    """The sizes of one launch of the core's kernel.

    Attributes:
        rows: outputs of a program, a power of two. groups: of 4 inputs, in one step; with
            `fuse_right` a step is a block of B instead.
        programs: wanted for each multiprocessor; the inputs are split until there are as many.
        fuse_left, fuse_right: whether A and B are multiplied in the same launch.
        warps, stages: of Triton.
    """

    rows: int = 64
    groups: int = 32
    programs: int = _PROGRAMS
    fuse_left: bool = False
    fuse_right: bool = False
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Product:
    """What is to be computed: (out, in) with out added up over the layers that share the input."""

    rows: int
    features: int
    block: int | None
    batch: int
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """Its name in the table; batches go up to the next power of two."""
        items = 1 << (self.batch - 1).bit_length()
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.rows}x{self.features} block {self.block} batch {items} {dtype}"


def choose_tiling(product: Product, device: torch.device) -> Tiling:
    """The measured tiling of `product` on this GPU, else the rule's."""
    found = _measured().get(compiled_for(device), {}).get(product.key)
    return Tiling(**found) if found else by_rule(product)


def compiled_for(device: torch.device) -> str:
    """What a measured tiling is of: another Triton makes other programs of the kernels."""
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return f"{name}, triton {'.'.join(triton.__version__.split('.')[:2])}"


def by_rule(product: Product) -> Tiling:
    """Reasoned, not measured: fewer launches for decoding, above all for small layers."""
    if product.dtype == torch.float32:
        return Tiling(rows=32, groups=16, stages=2)  # larger tiles outgrow the registers
    left = can_fuse_left(product) and product.batch <= FUSE_ITEMS
    if (
        can_fuse_right(product)
        and product.batch <= 16
        and _bytes_read_again(product) <= _READ_AGAIN
    ):
        # Triton 3.3 compiles blocks of 64 for capability 9.0 with half of the warps only.
        warps = 4 if product.block == 64 and is_older_than(3, 4) else 8
        return Tiling(rows=_TALL, fuse_left=left, fuse_right=True, warps=warps, stages=1)
    return Tiling(fuse_left=left)


def _bytes_read_again(product: Product) -> int:
    """All of B, for each tile of outputs."""
    assert product.block is not None
    tiles = -(-product.rows // _TALL)
    return tiles * product.features * product.block * product.dtype.itemsize


def can_fuse_left(product: Product) -> bool:
    """Whether A can be multiplied by the program that finishes a block of outputs last."""
    block = product.block
    # A smaller block, with cores in codes, outgrows the registers of capability 10.0.
    fits = block is not None and 8 <= block <= 128 and block & (block - 1) == 0
    return fits and product.dtype != torch.float32


def can_fuse_right(product: Product) -> bool:
    """Whether a step over the inputs can be a block of B."""
    return product.block in (32, 64, 128) and product.dtype != torch.float32


def alternatives(product: Product) -> list[list[dict[str, Any]]]:
    """What a search tries: lists of changes of a tiling, to be tried one list after the other."""
    lefts = (True, False) if can_fuse_left(product) else (False,)
    rights = (False, True) if can_fuse_right(product) else (False,)
    fused = [{"fuse_left": left, "fuse_right": right} for left in lefts for right in rights]
    sizes = ((32, 4), (64, 4), (64, 8), (128, 4), (128, 8), (256, 8))
    return [
        fused,
        [{"rows": rows, "warps": warps} for rows, warps in sizes],
        [{"programs": programs} for programs in (1, 2, 3, 4, 6, 8)],
        [{"stages": stages} for stages in (1, 2, 3, 4)],
        [{"groups": groups} for groups in (16, 32, 64)],
        fused,
    ]


@cache
def _measured() -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
