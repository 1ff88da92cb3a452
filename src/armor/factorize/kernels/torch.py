"""The core sweep in plain PyTorch: any device, all blocks at once, a Python loop over the groups.

Slow (b*b/4 steps of some thirty small operations) but it needs nothing beyond torch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from armor.factorize.masks import PAIRS


def sweep(
    residual: Float[Tensor, "rows cols"],
    core: Float[Tensor, "rows cols"],
    choice: UInt8[Tensor, "rows groups"],
    gram_left: Float[Tensor, "i b b"],
    gram_right: Float[Tensor, "j b b"],
    inverses: Float[Tensor, "j g 6 3"],
) -> None:
    """Sweep every block of (i*b, j*b) matrices in place; see `reference.sweep_block`.

    Args:
        residual, core: (i*b, j*b). choice: uint8 (i*b, j*b/4).
        gram_left: (i, b, b). gram_right: (j, b, b). inverses: (j, b/4, 6, 3).
    """
    size = gram_left.shape[1]
    first = torch.tensor([one for one, _ in PAIRS], dtype=torch.int64, device=core.device)
    second = torch.tensor([two for _, two in PAIRS], dtype=torch.int64, device=core.device)
    residuals, cores, codes = (_blocks(each, size) for each in (residual, core, choice))
    change_grams = torch.empty_like(residuals)  # dS H
    for row in range(size):
        scale = gram_left[:, row, row].clamp_min(0.0)[:, None, None]
        recip = torch.where(scale > 0, 1 / scale, 0.0)
        running_residual = residuals[:, :, row] - torch.einsum(
            "ik,ijkc->ijc", gram_left[:, row, :row], change_grams[:, :, :row]
        )
        change_gram = change_grams[:, :, row].zero_()
        for group in range(size // 4):
            cols = slice(4 * group, 4 * group + 4)
            current = cores[:, :, row, cols]
            contribution = scale * torch.einsum("ijc,jcd->ijd", current, gram_right[:, cols, cols])
            partial_residual = (
                running_residual[..., cols] - scale * change_gram[..., cols] + contribution
            )
            one, two = partial_residual[..., first], partial_residual[..., second]
            inv11, inv12, inv22 = inverses[:, group].unbind(-1)
            gains = inv11 * one * one + 2 * inv12 * one * two + inv22 * two * two
            best, code = gains.max(-1, keepdim=True)
            # Gains are kept multiplied by `scale`, which does not change their order.
            better = best > scale * (current * (2 * partial_residual - contribution)).sum(
                -1, keepdim=True
            )
            better &= scale > 0
            values = torch.zeros_like(current)
            values.scatter_(-1, first[code], recip * (inv11 * one + inv12 * two).gather(-1, code))
            values.scatter_(-1, second[code], recip * (inv12 * one + inv22 * two).gather(-1, code))
            change = torch.where(better, values - current, 0.0)
            change_gram += torch.einsum("ijc,jcd->ijd", change, gram_right[:, cols])
            cores[:, :, row, cols] = torch.where(better, values, current)
            codes[:, :, row, group, None] = torch.where(
                better, code.to(choice.dtype), codes[:, :, row, group, None]
            )


def _blocks(matrix: Shaped[Tensor, "rows cols"], size: int) -> Shaped[Tensor, "i j b w"]:
    """(i*b, j*w) seen as (i, j, b, w), where `size` is b and w is b or b/4; shares memory."""
    rows = matrix.unflatten(0, (-1, size))
    width = size // 4 if matrix.dtype == torch.uint8 else size
    return rows.unflatten(2, (-1, width)).transpose(1, 2)
