"""The core sweep of any pattern in plain NumPy, written to be read: the oracle of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def sweep_block(
    residual: NDArray[np.floating],
    core: NDArray[np.floating],
    choice: NDArray[np.uint8],
    gram_left: NDArray[np.floating],
    gram_right: NDArray[np.floating],
    masks: Sequence[tuple[int, ...]],
    price: float | None,
) -> None:
    """`reference.sweep_block` over other masks than the six of 2:4.

    Args:
        choice: (b, b/M), index into `masks`, updated.
        masks: the kept positions of each mask.
        price: of a kept entry: masks of every size compete by gain less price. None: a group stays
            with masks of the size that it has.
    """
    size = residual.shape[0]
    width = size // choice.shape[1]
    start = core.copy()
    for row in range(size):
        scale = gram_left[row, row]
        if scale <= 0:
            continue
        for group in range(size // width):
            cols = slice(width * group, width * (group + 1))
            corner = gram_right[cols, cols]
            moved = gram_left[row] @ (core - start) @ gram_right[:, cols]
            held = core[row, cols].copy()
            pull = residual[row, cols] - moved + scale * (held @ corner)
            now = masks[choice[row, group]]
            gain = 2 * pull @ held - scale * held @ corner @ held - (price or 0.0) * len(now)
            for code, mask in enumerate(masks):
                if price is None and len(mask) != len(now):
                    continue
                at = list(mask)
                values = np.zeros_like(held)
                system = scale * corner[np.ix_(at, at)]
                values[at] = np.linalg.lstsq(system, pull[at], rcond=1e-6)[0]
                candidate = pull @ values - (price or 0.0) * len(mask)
                if candidate > gain:
                    gain = candidate
                    core[row, cols] = values
                    choice[row, group] = code
