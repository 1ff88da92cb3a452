"""Factors: a pruned weight ``A S B`` (or a plain sparse ``S``) in memory, unpacked."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from armor.sparse.pattern import EVERYTHING, TWO_OF_FOUR, Pattern
from armor.sparse.rounded import Rounded


@dataclass(frozen=True)
class Factors:
    """One pruned linear layer, ``W_hat = A S B``.

    Attributes:
        core: S, zero wherever `mask` is False.
        mask: the kept positions: as many as `pattern` says (a kept value may be 0).
        left: A, i = ceil(out/b) blocks, or None for a method without wrappers.
        right: B, j = ceil(in/b) blocks, or None. A last partial block is padded with the identity.
        pattern: of `mask`.
        rounded: where core, and maybe wrappers, are on the grids of this; None: any values.
    """

    core: Float[Tensor, "out in"]
    mask: Bool[Tensor, "out in"]
    left: Float[Tensor, "i b b"] | None = None
    right: Float[Tensor, "j b b"] | None = None
    pattern: Pattern = TWO_OF_FOUR
    rounded: Rounded | None = None

    @property
    def block(self) -> int | None:
        """Wrapper block size b, None without wrappers."""
        return None if self.left is None else self.left.shape[-1]

    def to(self, device: str | torch.device) -> Factors:
        """The factors on `device`."""
        return replace(
            self,
            core=self.core.to(device),
            mask=self.mask.to(device),
            left=None if self.left is None else self.left.to(device),
            right=None if self.right is None else self.right.to(device),
            rounded=None if self.rounded is None else self.rounded.to(device),
        )

    def cast(self, dtype: torch.dtype) -> Factors:
        """Every factor in `dtype`; the mask and scales stay as they are."""
        return replace(
            self,
            core=self.core.to(dtype),
            left=None if self.left is None else self.left.to(dtype),
            right=None if self.right is None else self.right.to(dtype),
        )

    def dense(self) -> Float[Tensor, "out in"]:
        """``A S B`` in the dtype of the factors."""
        weight = self.core
        if self.left is not None:
            weight = block_left(self.left, weight)
        if self.right is not None:
            weight = block_right(weight, self.right)
        return weight


def everything(weight: Float[Tensor, "out in"]) -> Factors:
    """A weight that is not sparse, as factors."""
    return Factors(weight, torch.ones_like(weight, dtype=torch.bool), pattern=EVERYTHING)


def with_wrappers(factors: Factors, block: int) -> Factors:
    """The same matrix between wrappers that do nothing."""

    def identity(size: int) -> Tensor:
        one = torch.eye(block, dtype=factors.core.dtype, device=factors.core.device)
        return one.repeat(-(-size // block), 1, 1)

    rows, cols = factors.core.shape
    return replace(factors, left=identity(rows), right=identity(cols))


def block_left(
    left: Float[Tensor, "i b b"], matrix: Float[Tensor, "rows cols"]
) -> Float[Tensor, "rows cols"]:
    """``blockdiag(left) @ matrix``, rows <= i*b."""
    blocks, size, _ = left.shape
    rows, cols = matrix.shape
    padded = _pad_rows(matrix, blocks * size)
    return torch.bmm(left, padded.view(blocks, size, cols)).view(-1, cols)[:rows]


def block_right(
    matrix: Float[Tensor, "rows cols"], right: Float[Tensor, "j b b"]
) -> Float[Tensor, "rows cols"]:
    """``matrix @ blockdiag(right)``, cols <= j*b."""
    return block_left(right.mT, matrix.T).T


def _pad_rows(matrix: Tensor, rows: int) -> Tensor:
    missing = rows - matrix.shape[0]
    return (torch.nn.functional.pad(matrix, (0, 0, 0, missing)) if missing else matrix).contiguous()
