"""The PTX that unpacks a core, played instruction by instruction: no GPU is needed to check it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations

import pytest
import torch

from armor.runtime.registry import load
from armor.sparse.pack import pack, unpack

pytestmark = pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed")

_WORD = 0xFFFFFFFF


def permute(low: int, high: int, selectors: int) -> int:
    """``prmt.b32`` in its general form, as the manual of PTX has it."""
    pool = (low | high << 32).to_bytes(8, "little")
    found = []
    for place in range(4):
        selector = selectors >> 4 * place & 15
        byte = pool[selector & 7]
        found.append((0xFF if byte & 0x80 else 0) if selector & 8 else byte)
    return int.from_bytes(bytes(found), "little")


OPERATIONS: dict[str, Callable[..., int]] = {
    "prmt.b32": permute,
    "shl.b32": lambda a, n: a << n & _WORD,
    "shr.b32": lambda a, n: a >> n,
    "or.b32": lambda a, b: a | b,
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
}


def play(code: str, given: dict[str, int]) -> dict[str, int]:
    """The registers after `code`; reading one that nothing was written to is an error."""
    held = dict(given)
    for line in code.strip("{ }").split(";"):
        name, _, operands = line.strip().partition(" ")
        if not name or name == ".reg":
            continue
        target, *sources = (one.strip() for one in operands.split(","))
        values = [int(s, 0) if re.match(r"\d", s) else held[s] for s in sources]
        assert all(0 <= value <= _WORD for value in values)
        held[target] = OPERATIONS[name](*values)
    return held


@pytest.mark.parametrize("seed", range(20))
def test_four_groups_are_unpacked(seed: int) -> None:
    from armor.runtime.triton.unpack import unpacking_code

    generator = torch.Generator().manual_seed(seed)
    ways = list(combinations(range(4), 2))
    chosen = torch.randint(len(ways), (4,), generator=generator).tolist()
    mask = torch.zeros(1, 16, dtype=torch.bool)
    for group, way in enumerate(chosen):
        mask[0, [4 * group + place for place in ways[way]]] = True
    core = torch.where(mask, torch.randn(1, 16, generator=generator), 0.0).to(torch.bfloat16)
    core[0, int(torch.randint(16, (1,), generator=generator))] = 0.0  # a kept zero, perhaps
    values, codes = pack(core, mask)
    pairs = [number & _WORD for number in values.view(torch.int32)[0].tolist()]
    given = {f"${8 + n}": code for n, code in enumerate(codes[0].tolist())}
    given |= {f"${10 + n}": pair for n, pair in enumerate(pairs)}
    held = play(unpacking_code(), given)
    words = b"".join(held[f"${n}"].to_bytes(4, "little") for n in range(8))
    found = torch.frombuffer(bytearray(words), dtype=torch.bfloat16)[None]
    assert torch.equal(found, core)
    assert torch.equal(found, unpack(values, codes, 16))


def test_what_is_not_there_gives_zeros() -> None:
    """Groups behind the end are read as zeros, codes too."""
    from armor.runtime.triton.unpack import unpacking_code

    held = play(unpacking_code(), {f"${n}": 0 for n in range(8, 14)})
    assert [held[f"${n}"] for n in range(8)] == [0] * 8


def test_outputs_may_not_share_a_register_with_inputs() -> None:
    """Some are written while others are still to be read."""
    from armor.runtime.triton.unpack import OPERANDS

    assert OPERANDS.value.split(",") == ["=&r"] * 8 + ["r"] * 6
