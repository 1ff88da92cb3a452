"""Problem: what one layer asks of a pruning method. Baselines and solvers take the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from armor.factorize.products import product

_CHUNK = 2**20  # entries of a temporary


@dataclass(frozen=True)
class Problem:
    """Minimise ``tr((T - W_hat) X (T - W_hat)^T)`` over the admissible ``W_hat``.

    Attributes:
        target: T, (out, in), float32 or float64: the weight, or the compensated target.
        moment: X = E[x x^T], (in, in), or its diagonal d, (in,); same dtype and device as `target`.
    """

    target: Float[Tensor, "out in"]
    moment: Float[Tensor, "in in"] | Float[Tensor, " in"]

    @property
    def is_full(self) -> bool:
        """Whether `moment` is the whole matrix."""
        return self.moment.ndim == 2

    @cached_property
    def mean_square(self) -> Float[Tensor, " in"]:
        """``d_k = E[x_k^2]``, (in,)."""
        return self.moment.diagonal().contiguous() if self.is_full else self.moment

    def times_moment(self, matrix: Float[Tensor, "rows in"]) -> Float[Tensor, "rows in"]:
        """``matrix @ X``, (rows, in)."""
        return product(matrix, self.moment) if self.is_full else matrix * self.moment

    def loss(self, weight: Float[Tensor, "out in"]) -> float:
        """The proxy loss of `weight` (out, in), summed in float64, not normalised."""
        height = max(1, _CHUNK // self.target.shape[1])
        total = torch.zeros((), dtype=torch.float64, device=self.target.device)
        for target, rows in zip(self.target.split(height), weight.split(height), strict=True):
            error = target - rows
            by_row = (self.times_moment(error) * error).sum(dim=1, dtype=torch.float64)
            total += by_row.sum()
        return float(total)

    def zero_loss(self) -> float:
        """The loss of a zero weight, to which losses are related; 1 where that is 0."""
        return self.loss(self.target.new_zeros(()).expand_as(self.target)) or 1.0
