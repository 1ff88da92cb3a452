"""Which layers to measure: named models' linears, or shapes written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from armor.checkpoint.format import LayerSpec
from armor.errors import ArmorError


class Shape(NamedTuple):
    """A linear layer to measure: (out, in), and the wrapper block size (None: without)."""

    name: str
    out_features: int
    in_features: int
    block: int | None


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


def parse_shapes(text: str, block: int | None) -> list[Shape]:
    """``"4096x11008,llama-3-8b"`` -> shapes: OUTxIN or a name of `MODELS`, each with `block`.

    Raises `ArmorError` on anything else.
    """
    found = []
    for part in text.split(","):
        if part in MODELS:
            found += [Shape(f"{part} {name}", *size, block) for name, size in MODELS[part].items()]
            continue
        numbers = part.split("x")
        if len(numbers) != 2 or not all(n.isdecimal() and 0 < int(n) < 2**20 for n in numbers):
            raise ArmorError(
                f"shape {part[:40]!r} is neither OUTxIN, such as 4096x11008, nor one of"
                f" {', '.join(MODELS)}"
            )
        out, into = (int(n) for n in numbers)
        found.append(Shape(f"{out}x{into}", out, into, block))
    return found


def checkpoint_shapes(layers: Mapping[str, LayerSpec]) -> list[Shape]:
    """The distinct shapes among the pruned layers, each named by the first layer that has it."""
    found: dict[tuple[tuple[int, int], int | None], Shape] = {}
    for name, spec in layers.items():
        short = name.rpartition(".")[2]
        found.setdefault((spec.shape, spec.block), Shape(short, *spec.shape, spec.block))
    return list(found.values())
