"""Random packed layers, and what a backend should make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from armor.runtime import Call, reference
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask
from armor.sparse.pattern import Pattern


@dataclass(frozen=True)
class Case:
    """A layer, an input of it, and the product in float64 from the stored (rounded) numbers."""

    x: Tensor
    layer: PackedLayer
    bias: Tensor | None

    @property
    def call(self) -> Call:
        """Not prepared."""
        return Call(self.layer, self.bias)

    def expected(self) -> Tensor:
        """The product in float64."""
        return self._product(Tensor.double)

    def check(self, y: Tensor) -> None:
        """`y` has the right shape, dtype, strides and numbers, to the rounding of three factors."""
        expected = self.expected()
        assert y.shape == expected.shape
        assert y.dtype == self.x.dtype
        assert y.is_contiguous()
        # What a product of such numbers comes to; a few outputs may nearly cancel out.
        usual = self._product(lambda tensor: tensor.double().square()).sum().sqrt()
        tolerance = 8 * torch.finfo(y.dtype).eps
        error = float((y.double() - expected).norm())
        assert error <= tolerance * max(float(expected.norm()), float(usual))

    def _product(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The product of every factor as `change` makes it."""

        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        layer = replace(
            self.layer,
            core_values=change(self.layer.core_values),
            left=changed(self.layer.left),
            right=changed(self.layer.right),
        )
        flat = change(self.x).reshape(-1, layer.in_features)
        y = reference.matmul(flat, Call(layer, changed(self.bias)))
        return y.view(*self.x.shape[:-1], layer.shape[0])


MakeCase = Callable[..., Case]


@pytest.fixture(scope="session")
def make_case() -> MakeCase:
    """Makes a random layer (kept zeros included) and an input."""

    def make(
        rows: int,
        cols: int,
        block: int | None,
        batch: int,
        dtype: torch.dtype = torch.float32,
        bias: bool = False,
        contiguous: bool = True,
        device: torch.device | str = "cpu",
        seed: int = 0,
        pattern: str = "2:4",
    ) -> Case:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        core = normal(rows, cols)
        kept = Pattern.parse(pattern)
        if kept.is_unstructured:
            mask = torch.rand(rows, cols, generator=generator) < kept.density
            mask[rows // 2] = False
        else:
            mask = nm_mask(normal(rows, cols), kept.kept, kept.group)
        core *= (torch.rand(rows, cols, generator=generator) > 0.1) * mask
        factors = Factors(core, mask, pattern=kept)
        if block is not None:
            eye = torch.eye(block)
            left = eye + 0.3 * normal(-(-rows // block), block, block)
            right = eye + 0.3 * normal(-(-cols // block), block, block)
            factors = Factors(core, mask, left, right, kept)
        packed = PackedLayer.from_factors(factors.cast(dtype))
        tensors = {name: tensor.to(device) for name, tensor in packed.tensors().items()}
        layer = PackedLayer(cols, **tensors, pattern=kept)
        x = normal(batch, cols) if contiguous else normal(cols, 2 * batch)[:, ::2].T
        offset = normal(rows).to(device, dtype) if bias else None
        return Case(x.to(device, dtype), layer, offset)

    return make
