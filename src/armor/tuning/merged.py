"""MergedLinear: a pruned layer in training, its weight multiplied out once a step.

A step sees far more tokens than a wrapper block has columns, so ``y = (A S B) x`` with the product
made once is the cheap order; its gradient is taken back to A, S and B by the chain rule.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from armor.linear import ArmorLinear
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer


class MergedLinear(nn.Module):
    """``y = A S B x + bias`` with factors that are trained; the mask stays.

    Attributes:
        values: (kept,), the entries of S in the order of the mask's rows, float32.
        left, right: A and B, float32, or None. bias: float32, (out,), or None.
        weight: ``A S B``, (out, in), float32, as `merge` made it last.
    """

    values: nn.Parameter
    left: nn.Parameter | None
    right: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, layer: ArmorLinear) -> None:
        """Takes a copy of the factors of `layer`."""
        super().__init__()
        factors = layer.packed().to_factors()
        self._mask, self._pattern = factors.mask, factors.pattern
        self._at = factors.mask.flatten().nonzero().squeeze(1)

        def trained(tensor: Tensor | None) -> nn.Parameter | None:
            return None if tensor is None else nn.Parameter(tensor.detach().float().clone())

        self.values = nn.Parameter(factors.core.flatten()[self._at].float())
        self.left, self.right = trained(layer.left), trained(layer.right)
        self.bias = trained(layer.bias)
        self.weight = self.values.new_empty(0)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """With the `weight` at hand."""
        return functional.linear(x, self.weight, self.bias)

    def factors(self) -> Factors:
        """A, S and B, with gradients where they are on."""
        mask = self._mask
        core = self.values.new_zeros(mask.numel()).scatter(0, self._at, self.values)
        return Factors(core.view(mask.shape), mask, self.left, self.right, self._pattern)

    @torch.no_grad()
    def packed(self, dtype: torch.dtype) -> PackedLayer:
        """The layer as it is stored, in `dtype`."""
        return PackedLayer.from_factors(self.factors().cast(dtype))

    @torch.no_grad()
    def merge(self, dtype: torch.dtype = torch.float32) -> None:
        """Make `weight` of the factors rounded to `dtype`; it collects a gradient."""
        self.weight = self.factors().cast(dtype).cast(torch.float32).dense().requires_grad_()

    def pull_back(self) -> None:
        """Turn the gradient of `weight` into those of A, S and B."""
        grad, self.weight = self.weight.grad, self.weight.detach()
        if grad is None:  # an expert that no token of the step went to
            return
        found = [p for p in (self.values, self.left, self.right) if p is not None]
        with torch.enable_grad():
            gradients = torch.autograd.grad(self.factors().dense(), found, grad)
        for parameter, gradient in zip(found, gradients, strict=True):
            # In the order of the parameter: torch's fused optimisers read memory, not strides.
            parameter.grad = gradient.contiguous()
