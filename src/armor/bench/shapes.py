"""Which layers to measure: named models' linears, or shapes written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from armor.checkpoint.format import LayerSpec
from armor.errors import ArmorError
from armor.sparse.pattern import TWO_OF_FOUR, Pattern


class Shape(NamedTuple):
    """A linear layer to measure: (out, in), wrapper block size (None: without), core's pattern."""

    name: str
    out_features: int
    in_features: int
    block: int | None
    pattern: Pattern = TWO_OF_FOUR


# (out, in) of the linears of one decoder block, from the published config.json of each model.
MODELS: dict[str, dict[str, tuple[int, int]]] = {
    "llama-3-8b": {
        "q_proj": (4096, 4096),
        "k_proj": (1024, 4096),
        "gate_proj": (14336, 4096),
        "down_proj": (4096, 14336),
    },
    "qwen2.5-14b": {
        "q_proj": (5120, 5120),
        "k_proj": (1024, 5120),
        "gate_proj": (13824, 5120),
        "down_proj": (5120, 13824),
    },
}


def parse_shapes(text: str, block: int | None, pattern: Pattern = TWO_OF_FOUR) -> list[Shape]:
    """``"4096x11008,llama-3-8b"`` -> shapes: OUTxIN or a name of `MODELS`, each with `block`.

    Raises `ArmorError` on anything else.
    """
    found = []
    for part in text.split(","):
        if part in MODELS:
            sizes = MODELS[part].items()
            found += [Shape(f"{part} {name}", *size, block, pattern) for name, size in sizes]
            continue
        numbers = part.split("x")
        if len(numbers) != 2 or not all(n.isdecimal() and 0 < int(n) < 2**20 for n in numbers):
            raise ArmorError(
                f"shape {part[:40]!r} is neither OUTxIN, such as 4096x11008, nor one of"
                f" {', '.join(MODELS)}"
            )
        out, into = (int(n) for n in numbers)
        found.append(Shape(f"{out}x{into}", out, into, block, pattern))
    return found


def checkpoint_shapes(layers: Mapping[str, LayerSpec]) -> list[Shape]:
    """The distinct shapes among the pruned layers, each named by the first layer that has it.

    No two names are alike: results go by them.
    """
    found: dict[tuple[tuple[int, int], int | None, Pattern], Shape] = {}
    names: set[str] = set()
    for name, spec in layers.items():
        key = (spec.shape, spec.block, spec.pattern)
        if key in found:
            continue
        short = name.rpartition(".")[2]
        if spec.pattern != TWO_OF_FOUR:
            short += f" {spec.pattern}"
        rows, cols = spec.shape
        for more in (f" block {spec.block or 'none'}", f" {rows}x{cols}"):
            if short in names:
                short += more
        names.add(short)
        found[key] = Shape(short, *spec.shape, spec.block, spec.pattern)
    return list(found.values())
