"""What a layer is asked for: the moment it is judged under and the weight it should match."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def regularised(
    second: Float[Tensor, "in in"], shrinkage: float, damping: float
) -> Float[Tensor, "in in"]:
    """``(1-alpha) X + alpha diag(X) + lambda mean(diag X) I``, (in, in).

    Shrinkage keeps the factors from fitting the accidents of few calibration tokens; damping keeps
    the moment positive definite.
    """
    diagonal = second.diagonal()
    out = second * (1.0 - shrinkage)
    out.diagonal().copy_(diagonal + damping * diagonal.mean())
    return out


def compensated(
    weight: Float[Tensor, "out in"],
    second: Float[Tensor, "in in"],
    cross: Float[Tensor, "in in"],
    damping: float,
) -> Float[Tensor, "out in"]:
    """``W* = W (K + l I)(X + l I)^-1``, the weight whose output on the pruned model's inputs is
    closest to the dense layer's on its own, with ``l = damping * mean(diag X)``.

    Args:
        weight: W, (out, in). second: X = E[x_p x_p^T]. cross: K = E[x_d x_p^T], both (in, in).

    Returns:
        (out, in), in the dtype of `weight`; solved in float64.
    """
    ridge = damping * second.diagonal().double().mean().clamp_min(torch.finfo(torch.float32).tiny)
    weight_cross = weight.double() @ _with_ridge(cross, ridge)  # first: the two (in, in) never meet
    lower = _with_ridge(second, ridge).mT
    # In place, and by columns as LAPACK wants it: of a wide layer each copy is gigabytes.
    torch.linalg.cholesky(lower, out=lower)
    # Two triangular solves: cholesky_solve would copy the factor.
    half = torch.linalg.solve_triangular(lower, weight_cross.mT, upper=False)
    del weight_cross
    return torch.linalg.solve_triangular(lower.mT, half, upper=True).mT.to(weight.dtype)


def _with_ridge(
    moment: Float[Tensor, "in in"], ridge: Float64[Tensor, ""]
) -> Float64[Tensor, "in in"]:
    """``moment + ridge I`` in float64."""
    wide = moment.double()
    wide.diagonal().add_(ridge)
    return wide
