"""The core sweep in plain NumPy, written to be read: the oracle of the fast kernels.

It shares no code with them (its six pairs and their inverses are its own), only `MIN_PIVOT`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from armor.factorize.inverses import MIN_PIVOT

#: The six ways to keep 2 of 4, in the order of the `choice` codes.
PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def sweep_block(
    residual: Float[np.ndarray, "b b"],
    core: Float[np.ndarray, "b b"],
    choice: UInt8[np.ndarray, "b groups"],
    gram_left: Float[np.ndarray, "b b"],
    gram_right: Float[np.ndarray, "b b"],
    together: int = 1,
) -> None:
    """One exact coordinate sweep over the groups of one b x b block, in place.

    The block is the quadratic ``tr(S^T G S H) - 2 tr(S^T C)`` over 2:4 matrices S. Rows in order,
    groups of a row in order; each group moves to its best pair and values with all else fixed, and
    only if that lowers the quadratic.

    With several rows `together`, each row of such a set is swept as if the others of the set stood
    still; then, in order, a row's changes are kept if they lower the quadratic next to those that
    are kept before them: two rows change it by ``2 G_rq <dS_r H, dS_q>`` more than each alone. So
    it never rises, either.

    Args:
        residual: ``R = C - G S H``, (b, b), at the entry; not kept up to date.
        core: S, (b, b), updated.
        choice: (b, b/4), index into `PAIRS` of the kept pair, updated.
        gram_left: G = A^T A, (b, b).
        gram_right: H = B X_jj B^T, (b, b).
        together: rows of a set; a last one may have fewer.
    """
    inverses = pair_inverses(gram_right)
    size = residual.shape[0]
    start = core.copy()
    for first in range(0, size, together):
        rows = range(first, min(first + together, size))
        # The residual of the set with every change so far applied.
        running = residual[rows] - gram_left[rows] @ (core - start) @ gram_right
        before = core.copy()
        kept: list[int] = []
        for number, row in enumerate(rows):
            scale = gram_left[row, row]
            values, codes = core[row].copy(), choice[row].copy()
            _sweep_row(running[number], values, codes, scale, gram_right, inverses)
            change = values - core[row]
            gain = 2 * change @ running[number] - scale * change @ gram_right @ change
            lost = sum(
                2 * gram_left[row, other] * change @ gram_right @ (core[other] - before[other])
                for other in kept
            )
            if lost <= 0 or gain > lost:
                kept.append(row)
                core[row], choice[row] = values, codes


def sweep_two_columns(
    residual: Float[np.ndarray, "b two"],
    core: Float[np.ndarray, "b two"],
    choice: UInt8[np.ndarray, "b groups"],
    gram_left: Float[np.ndarray, "b b"],
    gram_right: Float[np.ndarray, "two two"],
    together: int = 1,
) -> None:
    """`sweep_block` of two neighbours in a row of blocks at once, in place.

    Each is swept as if the other stood still; then what the second changed is kept if the quadratic
    of both is no higher with it than without. So it never rises, either.

    Args:
        residual, core: (b, 2b). choice: (b, 2b/4). gram_right: H of both, (2b, 2b).
    """
    size = residual.shape[0]
    one, two = slice(0, size), slice(size, 2 * size)
    start, codes = core.copy(), choice.copy()
    groups = size // 4
    for cols, own in ((one, slice(0, groups)), (two, slice(groups, 2 * groups))):
        block, block_codes = core[:, cols], choice[:, own]
        gram = gram_right[cols, cols]
        sweep_block(residual[:, cols], block, block_codes, gram_left, gram, together)
    change = core - start
    alone = change.copy()
    alone[:, two] = 0
    gains = [
        np.sum(each * (2 * residual - gram_left @ each @ gram_right)) for each in (change, alone)
    ]
    if gains[0] < gains[1]:
        core[:, two], choice[:, groups:] = start[:, two], codes[:, groups:]


def _sweep_row(
    running_residual: Float[np.ndarray, " b"],
    values: Float[np.ndarray, " b"],
    codes: UInt8[np.ndarray, " groups"],
    scale: np.floating,
    gram_right: Float[np.ndarray, "b b"],
    inverses: Float[np.ndarray, "groups 6 3"],
) -> None:
    """The groups of one row in order; `values` and `codes` are updated. `scale`: G_rr."""
    if scale <= 0:
        return
    start = values.copy()
    for group in range(len(codes)):
        cols = slice(4 * group, 4 * group + 4)
        group_gram = gram_right[cols, cols]
        current = values[cols].copy()
        # With every change so far applied and this group taken out.
        partial_residual = running_residual[cols] - scale * (values - start) @ gram_right[:, cols]
        partial_residual = partial_residual + scale * (current @ group_gram)
        gain = 2 * partial_residual @ current - scale * current @ group_gram @ current
        for code, (one, two) in enumerate(PAIRS):
            inv11, inv12, inv22 = inverses[group, code]
            found = np.zeros_like(current)
            p1, p2 = partial_residual[one], partial_residual[two]
            found[one] = (inv11 * p1 + inv12 * p2) / scale
            found[two] = (inv12 * p1 + inv22 * p2) / scale
            candidate = partial_residual @ found
            if candidate > gain:
                gain = candidate
                values[cols] = found
                codes[group] = code


def pair_inverses(gram_right: Float[np.ndarray, "b b"]) -> Float[np.ndarray, "groups 6 3"]:
    """Inverses of the six 2x2 systems of each group.

    Args:
        gram_right: H, (b, b), positive semi-definite.

    Returns:
        (b/4, 6, 3): entries 11, 12, 22 of each inverse. A (near-)singular pair gets the inverse on
        its larger coordinate alone, so that its gain is still exact and its values stay finite.
    """
    groups = gram_right.shape[0] // 4
    out = np.zeros((groups, 6, 3), dtype=gram_right.dtype)
    for group in range(groups):
        for code, (one, two) in enumerate(PAIRS):
            a, b = 4 * group + one, 4 * group + two
            h11, h12, h22 = gram_right[a, a], gram_right[a, b], gram_right[b, b]
            det = h11 * h22 - h12 * h12
            if det > MIN_PIVOT * h11 * h22:
                out[group, code] = h22 / det, -h12 / det, h11 / det
            elif h11 >= h22 and h11 > 0:
                out[group, code] = 1 / h11, 0, 0
            elif h22 > 0:
                out[group, code] = 0, 0, 1 / h22
    return out
