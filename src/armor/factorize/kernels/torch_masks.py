"""The core sweep of any pattern in PyTorch: any device, all blocks at once, group after group."""

from __future__ import annotations

import torch
from torch import Tensor


def sweep(
    residual: Tensor,
    core: Tensor,
    choice: Tensor,
    gram_left: Tensor,
    gram_right: Tensor,
    tables: Tensor,
    first: Tensor,
    last: Tensor,
    costs: Tensor,
) -> None:
    """Sweep every block of (i*b, j*b) matrices in place; see `numba_masks.sweep`."""
    size = gram_left.shape[1]
    groups, _, masks = tables.shape[1:]
    width = size // groups
    one, two = torch.triu_indices(width, width, device=core.device)
    numbers = torch.arange(masks, device=core.device)
    pulls, cores = (_blocks(each, size, size) for each in (residual, core))
    codes = _blocks(choice, size, groups)
    # E of each mask whole, for the values: (j, groups, masks, M, M)
    whole = tables.new_zeros(*tables.shape[:2], masks, width, width)
    entries = tables.mT * torch.where(one == two, 1.0, 0.5).to(tables.dtype)
    whole[..., one, two] = entries
    whole[..., two, one] = entries
    costs = costs.to(core.dtype)
    changes = torch.empty_like(pulls)  # dS H
    for row in range(size):
        scale = gram_left[:, row, row].clamp_min(0.0)[:, None, None]
        recip = torch.where(scale > 0, 1 / scale, 0.0)
        pull = pulls[:, :, row] - torch.einsum(
            "ik,ijkc->ijc", gram_left[:, row, :row], changes[:, :, :row]
        )
        moved = changes[:, :, row].zero_()
        for group in range(groups):
            cols = slice(width * group, width * (group + 1))
            held = cores[:, :, row, cols]
            now = codes[:, :, row, group].long()
            own = scale * torch.einsum("ijc,jcd->ijd", held, gram_right[:, cols, cols])
            force = pull[..., cols] - scale * moved[..., cols] + own
            gains = torch.einsum(
                "ijp,jpm->ijm", force[..., one] * force[..., two], tables[:, group]
            )
            gains = gains - scale * costs
            allowed = (numbers >= first[now].unsqueeze(-1)) & (numbers < last[now].unsqueeze(-1))
            best, code = gains.masked_fill(~allowed, -torch.inf).max(-1, keepdim=True)
            # Gains are kept multiplied by `scale`, which does not change their order.
            kept = (held * (2 * force - own)).sum(-1, keepdim=True) - costs[now].unsqueeze(-1)
            better = (best > scale * kept) & (scale > 0)
            right = torch.arange(len(tables), device=core.device)
            inverse = whole[right, group, code.squeeze(-1)]
            values = recip * torch.einsum("ijab,ijb->ija", inverse, force)
            change = torch.where(better, values - held, 0.0)
            moved += torch.einsum("ijc,jcd->ijd", change, gram_right[:, cols])
            cores[:, :, row, cols] = torch.where(better, values, held)
            codes[:, :, row, group] = torch.where(better.squeeze(-1), code.squeeze(-1), now).to(
                choice.dtype
            )


def _blocks(matrix: Tensor, height: int, width: int) -> Tensor:
    """(i*height, j*width) seen as (i, j, height, width); shares memory."""
    return matrix.unflatten(0, (-1, height)).unflatten(2, (-1, width)).transpose(1, 2)
