"""PackedLayer: one pruned linear layer in the form that is stored and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from armor.sparse.factors import Factors, everything
from armor.sparse.pack import pack, unpack, unpack_mask
from armor.sparse.pattern import EVERYTHING, TWO_OF_FOUR, Pattern

#: The part of a layer that is not packed.
WEIGHT = "weight"


def stored_parts(factors: Factors) -> dict[str, Tensor]:
    """What is kept of a layer: packed; of one that is not sparse, its weight."""
    if factors.pattern == EVERYTHING:
        return {WEIGHT: factors.core}
    return PackedLayer.from_factors(factors).tensors()


def factors_of(in_features: int, parts: Mapping[str, Tensor], pattern: Pattern) -> Factors:
    """The inverse of `stored_parts`; `pattern`: of a packed core."""
    if WEIGHT in parts:
        return everything(parts[WEIGHT])
    return PackedLayer.of(in_features, parts, pattern).to_factors()


@dataclass(frozen=True)
class PackedLayer:
    """``W_hat = A S B`` with S packed.

    Attributes:
        in_features: columns of W_hat (the values of a last partial group are padded).
        core_values: kept values of S: of N:M (out, N*ceil(in/M)), of an unstructured core flat.
        core_indices: uint8, their positions: of 2:4 (out, ceil(ceil(in/4)/2)), else of as many
            bytes a row as their bits need (`armor.sparse.pack.pack`).
        left: A, (ceil(out/b), b, b), or None without wrappers. right: B, (ceil(in/b), b, b).
        pattern: of S.
    """

    in_features: int
    core_values: Float[Tensor, "out kept"] | Float[Tensor, " kept"]
    core_indices: UInt8[Tensor, "out bytes"]
    left: Float[Tensor, "i b b"] | None = None
    right: Float[Tensor, "j b b"] | None = None
    pattern: Pattern = TWO_OF_FOUR

    @classmethod
    def from_factors(cls, factors: Factors) -> PackedLayer:
        """Packed in the dtype of `factors`. Raises `ArmorError` if the mask has another pattern."""
        pattern = factors.pattern
        values, indices = pack(factors.core, factors.mask, pattern)
        return cls(factors.core.shape[1], values, indices, factors.left, factors.right, pattern)

    @classmethod
    def of(
        cls, in_features: int, tensors: Mapping[str, Tensor], pattern: Pattern = TWO_OF_FOUR
    ) -> PackedLayer:
        """The layer of the tensors that `tensors` returns."""
        return cls(
            in_features,
            tensors["core_values"],
            tensors["core_indices"],
            tensors.get("left"),
            tensors.get("right"),
            pattern,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.core_indices.shape[0], self.in_features

    @property
    def count(self) -> int | None:
        """Kept entries of an unstructured core; None for N:M."""
        return self.core_values.shape[0] if self.pattern.is_unstructured else None

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

    def to(self, dtype: torch.dtype) -> PackedLayer:
        """With all but the positions in `dtype`; gradients flow through."""
        left, right = (None if own is None else own.to(dtype) for own in (self.left, self.right))
        return replace(self, core_values=self.core_values.to(dtype), left=left, right=right)

    def to_factors(self) -> Factors:
        """The factors, unpacked, in the stored dtype."""
        return Factors(
            core=unpack(self.core_values, self.core_indices, self.in_features, self.pattern),
            mask=unpack_mask(self.core_indices, self.in_features, self.pattern),
            left=self.left,
            right=self.right,
            pattern=self.pattern,
        )

    def dense(self) -> Float[Tensor, "out in"]:
        """``A S B``: multiplied in float32 or wider, rounded once to the own dtype."""
        dtype = self.core_values.dtype
        wide = torch.promote_types(dtype, torch.float32)
        return self.to_factors().cast(wide).dense().to(dtype)
