"""The rounding sweep in plain NumPy, written to be read: the oracle of the Numba kernel."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from armor.factorize.kernels.reference import PAIRS
from armor.sparse.levels import Levels


def sweep_block(
    residual: Float[np.ndarray, "b b"],
    core: Float[np.ndarray, "b b"],
    choice: UInt8[np.ndarray, "b groups"],
    steps: Float[np.ndarray, "b groups"],
    gram_left: Float[np.ndarray, "b b"],
    gram_right: Float[np.ndarray, "b b"],
    levels: Levels,
) -> None:
    """One coordinate sweep over the groups of one b x b block, on the grid of `levels`, in place.

    As `reference.sweep_block` with one row at a time; but each of the two values of a mask is a
    level times the group's step. The first is one of the two levels around its best value, the
    second the level that is then best. A group keeps what it has unless that lowers the loss.

    Args:
        residual, core, choice, gram_left, gram_right: as there; `core` is on the grid.
        steps: the unit of each group's levels, (b, b/4); a group of step 0 is left alone.
    """
    start = core.copy()
    size = residual.shape[0]
    for row in range(size):
        scale = gram_left[row, row]
        if scale <= 0:
            continue
        for group in range(size // 4):
            step = steps[row, group]
            if step <= 0:
                continue
            cols = slice(4 * group, 4 * group + 4)
            gram = gram_right[cols, cols]
            current = core[row, cols].copy()
            change = core - start
            running = residual[row] - gram_left[row] @ change @ gram_right
            partial = running[cols] + scale * (current @ gram)
            best = gain(current, partial, gram, scale)
            for code, (one, two) in enumerate(PAIRS):
                for values in candidates(one, two, partial, gram, scale, step, levels):
                    if (found := gain(values, partial, gram, scale)) > best:
                        best = found
                        core[row, cols], choice[row, group] = values, code


def gain(
    values: Float[np.ndarray, " 4"],
    partial: Float[np.ndarray, " 4"],
    gram: Float[np.ndarray, "4 4"],
    scale: np.floating,
) -> np.floating:
    """What these values of a group take off the loss."""
    return 2 * partial @ values - scale * values @ gram @ values


def candidates(
    one: int,
    two: int,
    partial: Float[np.ndarray, " 4"],
    gram: Float[np.ndarray, "4 4"],
    scale: np.floating,
    step: np.floating,
    levels: Levels,
) -> list[Float[np.ndarray, " 4"]]:
    """Both pairs of levels that are tried for the mask {one, two}."""
    h11, h12, h22 = gram[one, one], gram[one, two], gram[two, two]
    p1, p2 = partial[one] / scale, partial[two] / scale
    if h11 * h22 - h12 * h12 > 1e-3 * h11 * h22:
        wanted = (h22 * p1 - h12 * p2) / (h11 * h22 - h12 * h12)
    else:
        wanted = p1 / h11 if h11 > 0 else 0.0 * p1
    grid = np.array(levels.all())
    below = np.clip(np.searchsorted(grid, wanted / step, "right") - 1, 0, len(grid) - 2)
    found = []
    for first in grid[[below, below + 1]] * step:
        rest = (p2 - h12 * first) / h22 if h22 > 0 else 0.0 * p2
        values = np.zeros_like(partial)
        values[one], values[two] = first, grid[np.abs(grid - rest / step).argmin()] * step
        found.append(values)
    return found
