"""PackedLayer: one pruned linear layer in the form that is stored and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from armor.sparse.factors import Factors, everything
from armor.sparse.levels import FP8, INT4, INT8, Levels
from armor.sparse.pack import pack, unpack, unpack_mask
from armor.sparse.pattern import EVERYTHING, TWO_OF_FOUR, Pattern
from armor.sparse.rounded import (
    Rounded,
    decode,
    decode_blocks,
    encode,
    encode_blocks,
    load_codes,
    steps,
    store_codes,
)

#: The part of a layer that is not packed.
WEIGHT = "weight"
#: Those of a packed one: what its tensors are called, the bias aside.
PARTS = (
    *("core_values", "core_indices", "left", "right"),
    *("core_scales", "left_scales", "right_scales"),
)


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
        core_values: kept values of S: of N:M (out, N*ceil(in/M)), of an unstructured core flat. Of
            a rounded core codes: int8, or uint8 with two of int4 or one 8-bit float each.
        core_indices: uint8, their positions: of 2:4 (out, ceil(ceil(in/4)/2)), else of as many
            bytes a row as their bits need (`armor.sparse.pack.pack`).
        left: A, (ceil(out/b), b, b), or None without wrappers. right: B, (ceil(in/b), b, b). Codes,
            int8, where they are rounded.
        pattern: of S.
        core_scales, left_scales, right_scales: see `Rounded`; None where nothing is rounded.
    """

    in_features: int
    core_values: Shaped[Tensor, "out kept"] | Shaped[Tensor, " kept"]
    core_indices: UInt8[Tensor, "out bytes"]
    left: Shaped[Tensor, "i b b"] | None = None
    right: Shaped[Tensor, "j b b"] | None = None
    pattern: Pattern = TWO_OF_FOUR
    core_scales: Float[Tensor, "out n"] | None = None
    left_scales: Float[Tensor, "i b"] | None = None
    right_scales: Float[Tensor, "j b"] | None = None

    @classmethod
    def from_factors(cls, factors: Factors) -> PackedLayer:
        """Packed in the dtype of `factors`. Raises `ArmorError` if the mask has another pattern."""
        pattern, width = factors.pattern, factors.core.shape[1]
        values, indices = pack(factors.core, factors.mask, pattern)
        if (rounded := factors.rounded) is None:
            return cls(width, values, indices, factors.left, factors.right, pattern)
        scales = rounded.core_scales
        each = steps(scales.to(values.dtype), values.shape[1])
        values = store_codes(rounded.levels, encode(rounded.levels, values, each))
        left, right = factors.left, factors.right
        if left is not None and right is not None:
            one, two = rounded.left_scales, rounded.right_scales
            left = left.to(scales.dtype) if one is None else encode_blocks(left, one)
            right = right.to(scales.dtype) if two is None else encode_blocks(right, two)
        own_scales = scales, rounded.left_scales, rounded.right_scales
        return cls(width, values, indices, left, right, pattern, *own_scales)

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
            tensors.get("core_scales"),
            tensors.get("left_scales"),
            tensors.get("right_scales"),
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
    def kept(self) -> int:
        """Kept values of a row of an N:M core."""
        return self.core_values.shape[1] * self.per_byte

    @property
    def per_byte(self) -> int:
        """Kept values that `core_values` has in an entry: 2 of int4, else 1."""
        return 1 if self.levels is None else self.levels.per_byte

    @property
    def block(self) -> int | None:
        """Wrapper block size b, None without wrappers."""
        return None if self.left is None else self.left.shape[-1]

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by the last part of their name in a checkpoint."""
        named = {part: getattr(self, part) for part in PARTS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def levels(self) -> Levels | None:
        """What the core is rounded to, None if it is not."""
        if self.core_scales is None:
            return None
        if self.core_values.dtype == torch.int8:
            return INT8
        return FP8 if self.core_values.shape[1] == 2 * -(-self.in_features // 4) else INT4

    @property
    def core(self) -> str | None:
        """The name of `levels`."""
        return None if self.levels is None else self.levels.name

    @property
    def dtype(self) -> torch.dtype:
        """Of the dense weight: of the values, or where these are codes of their scales."""
        return self.core_values.dtype if self.core_scales is None else self.core_scales.dtype

    def float_values(self) -> Float[Tensor, "*shape"]:
        """The kept values; codes multiplied out in float32 or wider."""
        if self.core_scales is None or (levels := self.levels) is None:
            return self.core_values
        codes = load_codes(levels, self.core_values)
        return decode(levels, codes, steps(_wide(self.core_scales), codes.shape[1]))

    def float_wrappers(self) -> tuple[Float[Tensor, "i b b"] | None, Float[Tensor, "j b b"] | None]:
        """A and B; those of a layer with a rounded core in float32 or wider."""
        left, right = self.left, self.right
        if self.core_scales is None or left is None or right is None:
            return left, right
        if self.left_scales is None or self.right_scales is None:
            return _wide(left), _wide(right)
        return (
            decode_blocks(left, _wide(self.left_scales)),
            decode_blocks(right, _wide(self.right_scales)),
        )

    def to(self, dtype: torch.dtype) -> PackedLayer:
        """With all but positions and codes in `dtype`; gradients flow through."""
        own = {part: t.to(dtype) for part, t in self.tensors().items() if t.is_floating_point()}
        return PackedLayer.of(self.in_features, self.tensors() | own, self.pattern)

    def to_factors(self) -> Factors:
        """The factors, unpacked, in the stored dtype; rounded ones in float32 or wider."""
        rounded = None
        if self.core_scales is not None and (levels := self.levels) is not None:
            rounded = Rounded(levels, self.core_scales, self.left_scales, self.right_scales)
        left, right = self.float_wrappers()
        values = self.float_values()
        return Factors(
            core=unpack(values, self.core_indices, self.in_features, self.pattern),
            mask=unpack_mask(self.core_indices, self.in_features, self.pattern),
            left=left,
            right=right,
            pattern=self.pattern,
            rounded=rounded,
        )

    def dense(self) -> Float[Tensor, "out in"]:
        """``A S B``: multiplied in float32 or wider, rounded once to the own dtype."""
        dtype = self.dtype
        wide = torch.promote_types(dtype, torch.float32)
        return self.to_factors().cast(wide).dense().to(dtype)


def _wide(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In float32, or as wide as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
