"""The core sweep: one exact pass over every group of 4, on whichever backend fits."""

from __future__ import annotations

import torch
from torch import Tensor

from armor.factorize.kernels.reference import PAIRS

_FIRST = torch.tensor([one for one, _ in PAIRS])
_SECOND = torch.tensor([two for _, two in PAIRS])


def sweep(
    residual: Tensor, core: Tensor, choice: Tensor, gram_left: Tensor, gram_right: Tensor
) -> None:
    """One sweep over all groups of all blocks, in place; never raises the loss.

    Blocks are independent given the wrappers, so they run in parallel.

    Args:
        residual: ``R = C - G S H``, (i*b, j*b).
        core: S, (i*b, j*b), updated.
        choice: kept pair of each group, uint8 (i*b, j*b/4), updated.
        gram_left: G = A^T A, (i, b, b).
        gram_right: H = B X_jj B^T, (j, b, b).
    """
    from armor.factorize.kernels.numba import sweep as kernel

    inverses = pair_inverses(gram_right)
    kernel(
        *(
            tensor.numpy()
            for tensor in (residual, core, choice, gram_left.contiguous(), gram_right.contiguous())
        ),
        inverses.numpy(),
    )


def pair_inverses(gram_right: Tensor) -> Tensor:
    """`reference.pair_inverses` for a batch: (j, b, b) -> (j, b/4, 6, 3)."""
    groups = torch.arange(0, gram_right.shape[-1], 4).unsqueeze(-1)
    one, two = groups + _FIRST, groups + _SECOND
    h11, h12, h22 = gram_right[:, one, one], gram_right[:, one, two], gram_right[:, two, two]
    det = h11 * h22 - h12 * h12
    regular = det > 1e-5 * h11 * h22
    det = torch.where(regular, det, 1.0)
    use_first = h11 >= h22
    alone1 = torch.where(use_first & (h11 > 0), 1 / h11, 0.0)
    alone2 = torch.where(~use_first, 1 / h22, 0.0)
    return torch.stack(
        [
            torch.where(regular, h22 / det, alone1),
            torch.where(regular, -h12 / det, 0.0),
            torch.where(regular, h11 / det, alone2),
        ],
        dim=-1,
    )


def mask_of(choice: Tensor) -> Tensor:
    """Kept positions, bool (rows, 4*groups), of the pair codes `choice` (rows, groups)."""
    table = torch.zeros(len(PAIRS), 4, dtype=torch.bool)
    table[torch.arange(len(PAIRS)), _FIRST] = True
    table[torch.arange(len(PAIRS)), _SECOND] = True
    return table.to(choice.device)[choice.long()].flatten(1)


def choice_of(mask: Tensor) -> Tensor:
    """The inverse of `mask_of`: uint8 (rows, groups)."""
    weights = torch.tensor([1, 2, 4, 8], device=mask.device)
    keys = (mask.unflatten(1, (-1, 4)) * weights).sum(-1)
    table = torch.zeros(16, dtype=torch.uint8, device=mask.device)
    for code, (one, two) in enumerate(PAIRS):
        table[(1 << one) | (1 << two)] = code
    return table[keys]
