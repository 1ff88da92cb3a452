"""Which layers the doctor compares backends on: few, so that few kernels have to be compiled.

A GPU compiles a kernel for each block size, dtype, kind of core, number of rows (1, some, many) and
number of layers, with and without a bias, and for sizes that are multiples of 16 and others. So the
forms share shapes, and the first dtype of a device gets more of them than the second and the third.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

from armor.bench.forms import Member
from armor.bench.shapes import Shape
from armor.sparse.levels import CORES, INT8
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

#: Single layers, (out, in, block): awkward, usual, without wrappers, of a real model.
AWKWARD = Shape("37x52", 37, 52, 8)
USUAL = Shape("256x512", 256, 512, 32)
BARE = Shape("64x256 without wrappers", 64, 256, None)
REAL = (Shape("4096x4096", 4096, 4096, 128), Shape("1024x4096", 1024, 4096, 128))
#: Layers with the same input: of one block size, of several, and as a Llama of 8B has them.
ALIKE = (USUAL, Shape("128x512", 128, 512, 32), Shape("128x512", 128, 512, 32))
UNLIKE = (USUAL, Shape("128x512", 128, 512, 16), Shape("128x512", 128, 512, 16))
REAL_UNLIKE = (REAL[0], REAL[1]._replace(block=64), REAL[1]._replace(block=64))
#: (width, numbers between, block) of gated MLPs.
MLPS = ((512, 256, 32), (4096, 11008, 128))
#: Rows of input: decoding, a small batch, prefill; and where fewer of them have to do.
ROWS, FEW, MANY = (1, 16, 64), (1, 64), (64,)
#: Other patterns than 2:4.
PATTERNS = (Pattern(4, 8), Pattern.parse("50%"))


class Case(NamedTuple):
    """What is compared.

    Attributes:
        members: a layer, or several that share an input. rows: of the input, each tried.
    """

    name: str
    members: Sequence[Member]
    rows: Sequence[int]


def in_words(rows: int) -> str:
    """Such as "16 rows"."""
    return "1 row" if rows == 1 else f"{rows} rows"


def single(core: str | None, pattern: Pattern, place: int) -> list[Case]:
    """Single layers; place: of their dtype among those of the device."""
    rows: dict[Shape, tuple[int, ...]]
    if core is not None:
        rows = {USUAL: MANY if place > 1 else FEW}
        rows |= {AWKWARD: ROWS[1:2], REAL[1]: FEW} if place == 0 else {}
    elif pattern == TWO_OF_FOUR and place == 0:
        rows = {AWKWARD: ROWS, USUAL: ROWS, BARE: FEW, REAL[0]: ROWS}
    else:
        rows = {USUAL: FEW} if place > 1 else {AWKWARD: ROWS[1:2], USUAL: ROWS}
    wrappers = {USUAL: None if core is None else INT8.name}
    return [
        Case(
            shape.name,
            [Member(shape._replace(pattern=pattern), core, wrappers.get(shape), shape == AWKWARD)],
            each,
        )
        for shape, each in rows.items()
    ]


def sharing(place: int) -> list[Case]:
    """Layers that share an input; place: of their dtype among those of the device."""
    one, several = "one block size", "several block sizes"
    if place > 0:
        alike, unlike = ([Member(shape) for shape in shapes] for shapes in (ALIKE, UNLIKE))
        found = [Case(several, unlike, MANY if place > 1 else FEW)]
        return found if place > 1 else [Case(one, alike, FEW), *found]
    alike = [Member(shape, bias=True) for shape in ALIKE]
    found = [Case(one, alike, ROWS), Case(several, [Member(shape) for shape in REAL_UNLIKE], ROWS)]
    for core in CORES:
        rounded = [Member(shape, core, INT8.name) for shape in ALIKE]
        found.append(Case(f"{core} cores", rounded, FEW))
    kinds = [
        Member(shape, core, INT8.name) for shape, core in zip(ALIKE, cycle(CORES), strict=False)
    ]
    return [*found, Case("several kinds of cores", kinds, FEW)]
