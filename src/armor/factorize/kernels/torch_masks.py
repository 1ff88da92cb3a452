"""The core sweep of any pattern in PyTorch: any device, all blocks at once, group after group."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from armor.factorize.inverses import GainTerms


def sweep(
    residual: Float[Tensor, "rows cols"],
    core: Float[Tensor, "rows cols"],
    choice: UInt8[Tensor, "rows groups"],
    gram_left: Float[Tensor, "i b b"],
    gram_right: Float[Tensor, "j b b"],
    tables: Float[Tensor, "j g terms"],
    terms: GainTerms,
    price: Float[Tensor, ""] | None,
) -> None:
    """Sweep every block of (i*b, j*b) matrices in place; see `reference_masks.sweep_block`.

    Args:
        residual, core: (i*b, j*b). choice: (i*b, j*b/M).
        gram_left: (i, b, b). gram_right: (j, b, b).
        tables: `inverses.gain_tables`. terms: of the pattern.
        price: of a kept entry, (), or None.
    """
    size = gram_left.shape[1]
    groups = tables.shape[1]
    width = size // groups
    sizes = terms.sizes.to(core.device)
    residuals, cores = (_blocks(each, size, size) for each in (residual, core))
    codes = _blocks(choice, size, groups)
    inverses = _inverses(tables, terms, width)
    right = torch.arange(len(tables), dtype=torch.int64, device=core.device)
    change_grams = torch.empty_like(residuals)  # dS H
    for row in range(size):
        scale = gram_left[:, row, row].clamp_min(0.0)[:, None, None]
        recip = torch.where(scale > 0, 1 / scale, 0.0)
        running_residual = residuals[:, :, row] - torch.einsum(
            "ik,ijkc->ijc", gram_left[:, row, :row], change_grams[:, :, :row]
        )
        change_gram = change_grams[:, :, row].zero_()
        for group in range(groups):
            cols = slice(width * group, width * (group + 1))
            current = cores[:, :, row, cols]
            current_code = codes[:, :, row, group].long()
            contribution = scale * torch.einsum("ijc,jcd->ijd", current, gram_right[:, cols, cols])
            partial_residual = (
                running_residual[..., cols] - scale * change_gram[..., cols] + contribution
            )
            gains = torch.einsum(
                "ija,jmab,ijb->ijm", partial_residual, inverses[:, group], partial_residual
            )
            current_gain = (current * (2 * partial_residual - contribution)).sum(-1, keepdim=True)
            if price is None:
                gains.masked_fill_(sizes != sizes[current_code].unsqueeze(-1), -torch.inf)
            else:
                gains -= scale * price * sizes
                current_gain -= price * sizes[current_code].unsqueeze(-1)
            best, code = gains.max(-1, keepdim=True)
            # Gains are kept multiplied by `scale`, which does not change their order.
            better = (best > scale * current_gain) & (scale > 0)
            inverse = inverses[right, group, code.squeeze(-1)]
            values = recip * torch.einsum("ijab,ijb->ija", inverse, partial_residual)
            change = torch.where(better, values - current, 0.0)
            change_gram += torch.einsum("ijc,jcd->ijd", change, gram_right[:, cols])
            cores[:, :, row, cols] = torch.where(better, values, current)
            codes[:, :, row, group] = torch.where(
                better.squeeze(-1), code.squeeze(-1), current_code
            ).to(choice.dtype)


def _inverses(
    tables: Float[Tensor, "j g terms"], terms: GainTerms, width: int
) -> Float[Tensor, "j g masks M M"]:
    """Q of each mask, (j, groups, masks, M, M)."""
    counts = terms.starts.diff()
    numbers = torch.arange(len(counts), dtype=torch.int64, device=counts.device)
    mask = torch.repeat_interleave(numbers, counts).to(tables.device)
    one, two = terms.one.to(tables.device), terms.two.to(tables.device)
    inverses = tables.new_zeros(*tables.shape[:2], len(counts), width, width)
    flat = inverses.flatten(2)
    for row, column in ((one, two), (two, one)):
        # Half of each entry from either side; those that fill up a chunk add 0.
        place = ((mask * width + row) * width + column).expand_as(tables)
        flat.scatter_add_(2, place, tables / 2)
    return flat.view_as(inverses)


def _blocks(
    matrix: Shaped[Tensor, "rows cols"], height: int, width: int
) -> Shaped[Tensor, "i j h w"]:
    """(i*height, j*width) seen as (i, j, height, width); shares memory."""
    return matrix.unflatten(0, (-1, height)).unflatten(2, (-1, width)).transpose(1, 2)
