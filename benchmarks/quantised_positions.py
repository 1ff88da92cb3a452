"""Positions in 3 bits a group, as six masks need, beside the 4 bits that are stored: one row.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/quantised_positions.py --threads 2

The kernel of one row, once with each kind of positions; 3 bits become 4 by a table of four groups.
In turns, with weights that no cache holds. Writes results/quantised_positions.json.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from itertools import cycle
from typing import Any

from quantised_speed import FEATURES

SIZE, GROUP = 4096, 64
COPIES = 24  # more than a cache holds
MASKS = (4, 8, 9, 12, 13, 14)  # as two positions of 2 bits


def kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """y = S x by codes (rows, kept): with positions of 4 bits a group, and of 3."""
    import numpy as np
    from numba import njit, prange

    from armor.simd.codes import load_codes16
    from armor.simd.select import load_positions, select16
    from armor.simd.vectors import every16, load1, load16, multiply_add16, sum16, zero16

    options: dict[str, Any] = {"error_model": "numpy", "nogil": True}

    def kernel(narrow: bool) -> Callable[..., None]:
        step = 3 if narrow else 4

        @njit(forceinline=True, **options)
        def picked(x, at, positions, p, table):  # type: ignore[no-untyped-def]
            word = load_positions(positions, p)
            if narrow:
                low, high = np.uint32(table[word & 4095]), np.uint32(table[(word >> 12) & 4095])
                word = np.int32(low | (high << np.uint32(16)))
            return select16(load16(x, at), load16(x, at + 16), word)

        @njit(parallel=True, **options)
        def product(codes, kept, scales, positions, width, table, x, y):  # type: ignore[no-untyped-def]
            for line in prange(y.shape[0]):
                row = np.intp(line)
                total, at, p, s = zero16(), 0, row * width, row * scales.shape[1]
                for v in range(row * kept, (row + 1) * kept, GROUP):
                    part = zero16()
                    for place in range(0, GROUP, 16):
                        there = picked(x, at, positions, p, table)
                        part = multiply_add16(part, load_codes16(codes, v + place), there)
                        at, p = at + 32, p + step
                    total = multiply_add16(total, every16(load1(scales, s)), part)
                    s += 1
                y[row] = sum16(total)

        return product

    return kernel(False), kernel(True)


def stored(draw: Any) -> tuple[Any, Any, Any]:
    """Random positions of 4 bits and of 3, rows by bytes, and the table from 12 bits to 16."""
    import numpy as np

    ranks = draw.integers(0, len(MASKS), (SIZE, SIZE // 4)).astype(np.uint8)
    nibbles = np.array(MASKS, np.uint8)[ranks]
    wide = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    bits = np.unpackbits(ranks[..., None], axis=2, bitorder="little")[..., :3]
    narrow = np.packbits(bits.reshape(SIZE, -1), axis=1, bitorder="little")
    known = np.array([*MASKS, MASKS[0], MASKS[0]], np.uint16)
    number = np.arange(4096)
    table = sum(known[number >> 3 * group & 7] << 4 * group for group in range(4))
    return wide, narrow, table.astype(np.uint16)


def main() -> None:
    import numpy as np
    import torch
    from common import add_common, revision, use_threads, write_result

    from armor.bench.timing import interleaved

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--processor", choices=FEATURES)
    add_common(parser, "quantised_positions")
    args = parser.parse_args()
    use_threads(args.threads)
    draw = np.random.default_rng(0)
    wide, narrow, table = stored(draw)
    kept = SIZE // 2
    x = draw.normal(size=(1, SIZE)).astype(np.float32)
    scales = draw.random((SIZE, kept // GROUP)).astype(np.float32)
    forms = {
        "int8": draw.integers(-127, 128, (SIZE, kept)).astype(np.int8),
        "int4": draw.integers(0, 256, (SIZE, kept // 2)).astype(np.uint8),
    }
    by_four, by_three = kernels()
    runs: dict[str, Callable[[], object]] = {}
    results: dict[str, Any] = {}
    for form, codes in forms.items():
        for bits, product, positions in ((4, by_four, wide), (3, by_three, narrow)):
            name = f"{form}, {bits} bits"
            flat = np.append(positions.ravel(), np.zeros(4, np.uint8))  # words are read
            copies = cycle([(codes.copy(), flat.copy()) for _ in range(COPIES)])
            y = results[name] = np.zeros(SIZE, np.float32)

            def run(
                product: Any = product,
                copies: Any = copies,
                width: int = positions.shape[1],
                y: Any = y,
            ) -> None:
                own, places = next(copies)
                product(own, kept, scales, places, width, table, x, y)

            runs[name] = run
    seconds = interleaved(runs, torch.device("cpu"), args.repeats)
    for form in forms:
        np.testing.assert_allclose(
            results[f"{form}, 3 bits"], results[f"{form}, 4 bits"], rtol=1e-4
        )
    print({name: f"{1e3 * value:.3f} ms" for name, value in seconds.items()})
    write_result(args, torch.device("cpu"), {"revision": revision(), "seconds": seconds})


if __name__ == "__main__":
    from sys import argv

    if "--processor" in argv:  # before Numba loads
        name = argv[argv.index("--processor") + 1]
        os.environ["NUMBA_CPU_NAME"] = name
        os.environ["NUMBA_CPU_FEATURES"] = FEATURES.get(name, "")
    main()
