"""What a layer is asked for: the moment it is judged under and the weight it should match."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from armor.calibrate.sample import Sample

#: What the damping of a compensated target is chosen from.
DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
#: Without tokens that are held out.
USUAL_DAMPING = 0.3


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


@dataclass(frozen=True)
class Compensation:
    """How far the target goes from the dense weight to the one that fits the calibration text best.

    Attributes:
        damping: lambda' of the regression. belief: the share of its correction that is applied.
    """

    damping: float
    belief: float = 1.0


def missed_moment(
    weight: Float[Tensor, "out in"],
    second: Float[Tensor, "in in"],
    cross: Float[Tensor, "in in"],
) -> Float[Tensor, "out in"]:
    """``E[e x_p^T] = W (K - X)`` with e what W misses, ``W x_d - W x_p``.

    Args:
        weight: W, (out, in). second: X = E[x_p x_p^T]. cross: K = E[x_d x_p^T], both (in, in).
    """
    return (weight.double() @ (cross.double() - second)).to(weight.dtype)


def compensated(
    weight: Float[Tensor, "out in"],
    second: Float[Tensor, "in in"],
    missed: Float[Tensor, "out in"],
    how: Compensation,
) -> Float[Tensor, "out in"]:
    """``W* = W + belief M (X + l I)^-1`` with ``l = damping * mean(diag X)``.

    At full belief, the weight whose output on the pruned model's inputs is closest to what the
    layer should put out: the dense layer's own and, of a layer that adds to the residual stream,
    what that has lost before.

    Args:
        weight: W, (out, in). second: X = E[x_p x_p^T], (in, in). missed: M = E[e x_p^T], (out, in),
            with e what W misses, see `Sample.missed`.

    Returns:
        (out, in), in the dtype of `weight`; solved in float64.
    """
    correction = _correction(missed.double(), second, how.damping)
    return (weight.double() + how.belief * correction).to(weight.dtype)


def choose_compensation(
    weight: Float[Tensor, "out in"],
    second: Float[Tensor, "in in"],
    missed: Float[Tensor, "out in"],
    held_out: Sample,
) -> Compensation:
    """The damping, of `DAMPINGS`, and the belief that miss least on tokens that were held out.

    A regression on few tokens takes their accidents for errors to correct, the more so the more
    layers have done it before; what it wins elsewhere, only other tokens tell. For each damping the
    best belief follows in closed form.
    """
    left = held_out.missed(weight)
    best, gained = Compensation(DAMPINGS[-1], 0.0), 0.0
    for damping in DAMPINGS:
        correction = _correction(missed.double(), second, damping).to(weight.dtype)
        made = held_out.inputs @ correction.T
        overlap = float((left * made).sum(dtype=torch.float64))
        energy = float(made.square().sum(dtype=torch.float64))
        belief = min(max(overlap / energy, 0.0), 1.0) if energy > 0 else 0.0
        gain = belief * (2 * overlap - belief * energy)
        if gain > gained:
            best, gained = Compensation(damping, belief), gain
    return best


def _correction(
    missed: Float64[Tensor, "out in"], second: Float[Tensor, "in in"], damping: float
) -> Float64[Tensor, "out in"]:
    """``missed (X + l I)^-1``."""
    lower = second.to(torch.float64, copy=True).mT
    ridge = damping * lower.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    lower.diagonal().add_(ridge)
    # In place, and by columns as LAPACK wants it: of a wide layer each copy is gigabytes.
    torch.linalg.cholesky(lower, out=lower)
    # Two triangular solves: cholesky_solve would copy the factor.
    half = torch.linalg.solve_triangular(lower, missed.mT, upper=False)
    return torch.linalg.solve_triangular(lower.mT, half, upper=True).mT
