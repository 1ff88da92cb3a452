"""From the stored form of a 2:4 core to a dense tile; importing this needs Triton.

A nibble holds the two positions of a group of four, ``first | second << 2``, first < second.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from armor.triton import is_interpreted

#: Whether bytes are permuted by an instruction of NVIDIA's; Triton's interpreter has none.
PERMUTES = tl.constexpr(torch.version.hip is None and not is_interpreted())
#: Selectors of a byte for `prmt.b32 PAIR, 0`: the first value of a pair, the second, zeros.
_FIRST, _SECOND, _ZERO = 0x10, 0x32, 0x44


def _selectors(place: int) -> tuple[str, str]:
    """What `prmt` puts at one place of a group, for each nibble n, under ``(n ^ n >> 1) & 7``.

    That is another number for each of the six that there are. Eight bytes, in two words.
    """
    table = [_ZERO] * 8
    for first in range(4):
        for second in range(first + 1, 4):
            nibble = first | second << 2
            if place in (first, second):
                table[(nibble ^ nibble >> 1) & 7] = _FIRST if place == first else _SECOND
    low, high = (int.from_bytes(bytes(half), "little") for half in (table[:4], table[4:]))
    return f"0x{low:08x}", f"0x{high:08x}"


def unpacking_code() -> str:
    """PTX that unpacks four groups: about six instructions each.

    Operands: $0 to $7 the dense groups, two 16-bit numbers in each; $8, $9 two nibbles of positions
    in each; $10 to $13 the kept values of each group.
    """
    lines = [
        ".reg .b32 codes, other, at0, at1, at2, at3, a, b, c, d;",
        "shl.b32 other, $9, 8;",
        "or.b32 codes, other, $8;",
        "shr.b32 other, codes, 1;",
        "xor.b32 codes, codes, other;",
        "and.b32 codes, codes, 0x7777;",
        # For each place the selector bytes of all four groups, then for each group those of places
        # 0 and 1 (a, b), and of 2 and 3 (c, d): groups 0 and 1 in a and c, 2 and 3 in b and d.
        *(f"prmt.b32 at{n}, {', '.join(_selectors(n))}, codes;" for n in range(4)),
        "prmt.b32 a, at0, at1, 0x5140;",
        "prmt.b32 b, at0, at1, 0x7362;",
        "prmt.b32 c, at2, at3, 0x5140;",
        "prmt.b32 d, at2, at3, 0x7362;",
    ]
    for group, (low, high) in enumerate((("a", "c"), ("a", "c"), ("b", "d"), ("b", "d"))):
        if group % 2:
            lines += [f"shr.b32 {low}, {low}, 16;", f"shr.b32 {high}, {high}, 16;"]
        lines.append(f"prmt.b32 ${2 * group}, ${10 + group}, 0, {low};")
        lines.append(f"prmt.b32 ${2 * group + 1}, ${10 + group}, 0, {high};")
    return "{ " + " ".join(lines) + " }"


CODE = tl.constexpr(unpacking_code())
OPERANDS = tl.constexpr(",".join(["=&r"] * 8 + ["r"] * 6))


@triton.jit
def unpacked(pairs, codes, ROWS: tl.constexpr, GROUPS: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The dense tile (ROWS, 4*GROUPS), 16-bit floats.

    Args:
        pairs: int32 (ROWS, GROUPS), the two kept values of a group; GROUPS divides by four.
        codes: uint8 (ROWS, GROUPS/2), two nibbles of positions each.
    """
    if PERMUTES:
        return _permuted(pairs, codes, ROWS, GROUPS, TYPE)
    return _shifted(pairs, codes, ROWS, GROUPS, TYPE)


@triton.jit
def _permuted(pairs, codes, ROWS: tl.constexpr, GROUPS: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    one, two = tl.split(tl.reshape(codes.to(tl.int32), (ROWS, GROUPS // 4, 2)))
    even, odd = tl.split(tl.reshape(pairs, (ROWS, GROUPS // 4, 2, 2)))
    pair0, pair2 = tl.split(even)
    pair1, pair3 = tl.split(odd)
    low0, high0, low1, high1, low2, high2, low3, high3 = tl.inline_asm_elementwise(
        CODE,
        OPERANDS,
        [one, two, pair0, pair1, pair2, pair3],
        dtype=(
            tl.int32,
            tl.int32,
            tl.int32,
            tl.int32,
            tl.int32,
            tl.int32,
            tl.int32,
            tl.int32,
        ),
        is_pure=True,
        pack=1,
    )
    low = tl.join(tl.join(low0, low2), tl.join(low1, low3))
    high = tl.join(tl.join(high0, high2), tl.join(high1, high3))
    words = tl.join(low, high).to(tl.uint32, bitcast=True)
    halves = tl.join(words.to(tl.uint16), (words >> 16).to(tl.uint16))
    return tl.reshape(halves, (ROWS, 4 * GROUPS)).to(TYPE, bitcast=True)


@triton.jit
def _shifted(pairs, codes, ROWS: tl.constexpr, GROUPS: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two shifts of 64 bits put a group's values into their places."""
    codes = codes.to(tl.uint32)
    # Sixteen times the first and the second position of each group.
    first = tl.join((codes << 4) & 48, codes & 48)
    second = tl.join((codes << 2) & 48, (codes >> 2) & 48)
    first = tl.reshape(first, (ROWS, GROUPS)).to(tl.uint64)
    second = tl.reshape(second, (ROWS, GROUPS)).to(tl.uint64)
    wide = pairs.to(tl.uint32, bitcast=True).to(tl.uint64)
    group = ((wide & 0xFFFF) << first) | ((wide >> 16) << second)
    even = tl.join(group.to(tl.uint16), (group >> 32).to(tl.uint16))
    odd = tl.join((group >> 16).to(tl.uint16), (group >> 48).to(tl.uint16))
    return tl.reshape(tl.join(even, odd), (ROWS, 4 * GROUPS)).to(TYPE, bitcast=True)
