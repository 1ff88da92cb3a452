"""PackedLayer: one pruned linear layer in the form that is stored and run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from armor.factorize.factors import Factors
from armor.factorize.scaling import cast
from armor.sparsity import pack, unpack, unpack_mask


@dataclass(frozen=True)
class PackedLayer:
    """``W_hat = A S B`` with S packed.

    Attributes:
        in_features: columns of W_hat (the values of a last partial group are padded).
        core_values: (out, 2*ceil(in/4)), kept values of S.
        core_indices: uint8 (out, ceil(ceil(in/4)/2)), their positions (`armor.sparsity.pack`).
        left: A, (ceil(out/b), b, b), or None without wrappers. right: B, (ceil(in/b), b, b).
    """

    in_features: int
    core_values: Tensor
    core_indices: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    @classmethod
    def from_factors(cls, factors: Factors) -> PackedLayer:
        """Packed in the dtype of `factors`. Raises `ArmorError` if the mask is not 2:4."""
        values, indices = pack(factors.core, factors.mask)
        return cls(factors.core.shape[1], values, indices, factors.left, factors.right)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.core_values.shape[0], self.in_features

    @property
    def block(self) -> int | None:
        """Wrapper block size b, None without wrappers."""
        return None if self.left is None else self.left.shape[-1]

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by the last part of their name in a checkpoint."""
        named = {
            "core_values": self.core_values,
            "core_indices": self.core_indices,
            "left": self.left,
            "right": self.right,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to_factors(self) -> Factors:
        """The factors, unpacked, in the stored dtype."""
        return Factors(
            core=unpack(self.core_values, self.core_indices, self.in_features),
            mask=unpack_mask(self.core_indices, self.in_features),
            left=self.left,
            right=self.right,
        )

    def dense(self) -> Tensor:
        """``A S B``, (out, in): multiplied in float32 or wider, rounded once to the own dtype."""
        dtype = self.core_values.dtype
        wide = torch.promote_types(dtype, torch.float32)
        return cast(self.to_factors(), wide).dense().to(dtype)
