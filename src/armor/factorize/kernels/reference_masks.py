"""The core sweep of any pattern in plain NumPy, written to be read: the oracle of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8


def sweep_block(
    residual: Float[np.ndarray, "b b"],
    core: Float[np.ndarray, "b b"],
    choice: UInt8[np.ndarray, "b groups"],
    gram_left: Float[np.ndarray, "b b"],
    gram_right: Float[np.ndarray, "b b"],
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
            group_gram = gram_right[cols, cols]
            applied = gram_left[row] @ (core - start) @ gram_right[:, cols]
            current = core[row, cols].copy()
            partial_residual = residual[row, cols] - applied + scale * (current @ group_gram)
            current_mask = masks[choice[row, group]]
            gain = 2 * partial_residual @ current - scale * current @ group_gram @ current
            gain -= (price or 0.0) * len(current_mask)
            for code, mask in enumerate(masks):
                if price is None and len(mask) != len(current_mask):
                    continue
                at = list(mask)
                values = np.zeros_like(current)
                system = scale * group_gram[np.ix_(at, at)]
                values[at] = np.linalg.lstsq(system, partial_residual[at], rcond=1e-6)[0]
                candidate = partial_residual @ values - (price or 0.0) * len(mask)
                if candidate > gain:
                    gain = candidate
                    core[row, cols] = values
                    choice[row, group] = code
