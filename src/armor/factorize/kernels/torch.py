"""The core sweep in plain PyTorch: any device, all blocks at once, a Python loop over the groups.

Slow (b*b/32 steps of some thirty small operations) but it needs nothing beyond torch. Rows move by
sets, as in the Triton kernel.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from armor.factorize.kernels.rows import ROWS_TOGETHER
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
    for start in range(0, size, ROWS_TOGETHER):
        rows = slice(start, min(start + ROWS_TOGETHER, size))
        couplings = gram_left[:, rows]
        scale = couplings[:, :, rows].diagonal(dim1=1, dim2=2).clamp_min(0.0)[:, None, :, None]
        recip = torch.where(scale > 0, 1 / scale, 0.0)
        running_residual = residuals[:, :, rows] - torch.einsum(
            "irk,ijkc->ijrc", couplings[:, :, :start], change_grams[:, :, :start]
        )
        values, kept_codes = cores[:, :, rows].clone(), codes[:, :, rows].clone()
        change_gram = change_grams[:, :, rows].zero_()
        for group in range(size // 4):
            cols = slice(4 * group, 4 * group + 4)
            current = values[..., cols].clone()
            contribution = scale * torch.einsum(
                "ijrc,jcd->ijrd", current, gram_right[:, cols, cols]
            )
            partial_residual = (
                running_residual[..., cols] - scale * change_gram[..., cols] + contribution
            )
            one, two = partial_residual[..., first], partial_residual[..., second]
            inv11, inv12, inv22 = inverses[:, group, None].unbind(-1)
            gains = inv11 * one * one + 2 * inv12 * one * two + inv22 * two * two
            best, code = gains.max(-1, keepdim=True)
            # Gains are kept multiplied by `scale`, which does not change their order.
            better = best > scale * (current * (2 * partial_residual - contribution)).sum(
                -1, keepdim=True
            )
            better &= scale > 0
            found = torch.zeros_like(current)
            found.scatter_(-1, first[code], recip * (inv11 * one + inv12 * two).gather(-1, code))
            found.scatter_(-1, second[code], recip * (inv12 * one + inv22 * two).gather(-1, code))
            change = torch.where(better, found - current, 0.0)
            change_gram += torch.einsum("ijrc,jcd->ijrd", change, gram_right[:, cols])
            values[..., cols] = torch.where(better, found, current)
            own = kept_codes[..., group, None]
            own.copy_(torch.where(better, code.to(choice.dtype), own))
        change = values - cores[:, :, rows]
        gain = (change * (2 * running_residual - scale * change_gram)).sum(-1)
        meet = torch.einsum("ijrc,ijqc,irq->ijrq", change, change_gram, couplings[:, :, rows])
        stays = _kept(gain, 2 * meet).unsqueeze(-1)
        change_gram.mul_(stays)
        cores[:, :, rows] = torch.where(stays, values, cores[:, :, rows])
        codes[:, :, rows] = torch.where(stays, kept_codes, codes[:, :, rows])


def _kept(gain: Float[Tensor, "i j r"], meet: Float[Tensor, "i j r r"]) -> Bool[Tensor, "i j r"]:
    """Which rows of a set stay: those that gain more than they lose to the ones kept before."""
    kept: list[Tensor] = []
    for row in range(gain.shape[-1]):
        lost = torch.zeros_like(gain[..., row])
        for other, stays in enumerate(kept):
            lost += torch.where(stays, meet[..., row, other], 0.0)
        kept.append((lost <= 0) | (gain[..., row] > lost))
    return torch.stack(kept, -1)


def _blocks(matrix: Shaped[Tensor, "rows cols"], size: int) -> Shaped[Tensor, "i j b w"]:
    """(i*b, j*w) seen as (i, j, b, w), where `size` is b and w is b or b/4; shares memory."""
    rows = matrix.unflatten(0, (-1, size))
    width = size // 4 if matrix.dtype == torch.uint8 else size
    return rows.unflatten(2, (-1, width)).transpose(1, 2)
