"""The grid that the values of a rounded core lie on, and the sweep over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from armor.factorize.masks import PAIRS
from armor.factorize.sweep import SweepColumns
from armor.sparse.levels import SCALE_GROUP, Levels
from armor.sparse.rounded import decode, encode, steps

#: The scales that are tried for values of which the largest has magnitude 1, over what takes that
#: to the largest level.
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)


@dataclass(frozen=True)
class Grid:
    """Levels, and what each group of four takes as their unit.

    Attributes:
        scales: (rows, n), n as `Levels.scale_count` says; 0: all values are 0.
    """

    levels: Levels
    scales: Float[Tensor, "rows scales"]

    @classmethod
    def fitted(
        cls,
        levels: Levels,
        core: Float[Tensor, "rows cols"],
        choice: UInt8[Tensor, "rows groups"],
        weights: Float[Tensor, " cols"],
        dtype: torch.dtype,
    ) -> Grid:
        """The scales with the least squared errors of rounding `core`, weighted by column.

        Of `SHRINKS`, for each row and the values that share one; as `dtype` has them.
        """
        values = kept_values(core, choice)
        importance = kept_values(weights.expand_as(core), choice)
        found = []
        size = values.shape[1] if levels.is_float else SCALE_GROUP
        for start in range(0, values.shape[1], size):
            own = values[:, start : start + size]
            weight = importance[:, start : start + size]
            whole = own.abs().amax(dim=1, keepdim=True) / levels.largest
            best = torch.zeros_like(whole)
            least = torch.full_like(whole, torch.inf)
            for shrink in SHRINKS:
                scale = (whole * shrink).to(dtype).to(own.dtype)
                rounded = decode(levels, encode(levels, own, scale), scale)
                error = (weight * (own - rounded).square()).sum(dim=1, keepdim=True)
                is_better = error < least
                best = torch.where(is_better, scale, best)
                least = torch.where(is_better, error, least)
            found.append(best)
        return cls(levels, torch.cat(found, dim=1))

    def nearest(
        self, core: Float[Tensor, "rows cols"], choice: UInt8[Tensor, "rows groups"]
    ) -> Float[Tensor, "rows cols"]:
        """`core` with every kept value rounded to the nearest of the grid."""
        values = kept_values(core, choice)
        each = steps(self.scales, values.shape[1])
        rounded = decode(self.levels, encode(self.levels, values, each), each)
        return put_values(rounded, choice, core)

    def column_sweep(self, gram_right: Float[Tensor, "j b b"]) -> SweepColumns:
        """One sweep over all groups of some column blocks at a time, each value on the grid."""
        from armor.factorize.kernels.rounding_numba import sweep

        groups = gram_right.shape[1] // 4
        step = steps(self.scales, 2 * groups * len(gram_right))[:, ::2]  # of each group of four

        def sweep_columns(
            blocks: slice, residual: Tensor, core: Tensor, choice: Tensor, gram_left: Tensor
        ) -> None:
            own = step[:, blocks.start * groups : blocks.stop * groups]
            sweep(residual, core, choice, own, gram_left, gram_right[blocks], self.levels)

        return sweep_columns


def kept_values(
    core: Float[Tensor, "rows cols"], choice: UInt8[Tensor, "rows groups"]
) -> Float[Tensor, "rows kept"]:
    """The two values of every group of four that its mask names, in order."""
    return core.unflatten(1, (-1, 4)).gather(2, _places(choice)).flatten(1)


def put_values(
    values: Float[Tensor, "rows kept"],
    choice: UInt8[Tensor, "rows groups"],
    core: Float[Tensor, "rows cols"],
) -> Float[Tensor, "rows cols"]:
    """The inverse of `kept_values`, in the shape of `core`; zeros elsewhere."""
    groups = torch.zeros_like(core).unflatten(1, (-1, 4))
    return groups.scatter_(2, _places(choice), values.unflatten(1, (-1, 2))).flatten(1)


def _places(choice: UInt8[Tensor, "rows groups"]) -> Tensor:
    """int64 (rows, groups, 2): the positions that each mask keeps."""
    pairs = torch.tensor(PAIRS, dtype=torch.int64, device=choice.device)
    return pairs[choice.long()]
