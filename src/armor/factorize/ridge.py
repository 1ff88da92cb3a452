"""The symmetric b x b systems of the wrapper steps, as explicit batched inverses."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: Ridge relative to each diagonal entry, by dtype of the products it regularises.
RIDGE = {torch.float32: 1e-6, torch.float64: 1e-10}


def ridge_inverse(gram: Float[Tensor, "blocks b b"]) -> Float[Tensor, "blocks b b"]:
    """``(gram + ridge)^-1`` of positive semi-definite (blocks, b, b), in the dtype of `gram`.

    The wrapper steps multiply it by a residual (half a gradient), which vanishes in the null space
    of `gram`: a singular system leaves the current value there as it is. Factorised in float64, so
    that only the rounding of `gram` itself counts; blocks that stay indefinite get a larger ridge.
    On a GPU, where to ask is to wait, these get ``(b diag)^-1`` instead: ``b diag(gram)`` is at
    least `gram`, so that a step by it is short, but lowers the loss all the same.
    """
    wide = gram.double()
    diagonal = wide.diagonal(dim1=-2, dim2=-1)
    tiny = torch.finfo(gram.dtype).tiny
    scale = diagonal + 1e-3 * diagonal.mean(-1, keepdim=True) + tiny / RIDGE[gram.dtype]
    lower, failed = _cholesky(wide, RIDGE[gram.dtype] * scale)
    if gram.device.type != "cpu":
        bound = torch.diag_embed((gram.shape[-1] * scale).sqrt())
        lower = torch.where(failed[:, None, None], bound, lower)
    else:
        for ridge in (1e-4, 1.0):
            if not failed.any():
                break
            larger, still_failed = _cholesky(wide, ridge * scale)
            lower = torch.where(failed[:, None, None], larger, lower)
            failed = failed & still_failed
    eye = torch.eye(gram.shape[-1], dtype=wide.dtype, device=gram.device)
    half = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    return torch.bmm(half.mT, half).to(gram.dtype)


def _cholesky(
    gram: Float[Tensor, "blocks b b"], ridge: Float[Tensor, "blocks b"]
) -> tuple[Float[Tensor, "blocks b b"], Bool[Tensor, " blocks"]]:
    """The lower factor of ``gram + diag(ridge)``, and where there is none."""
    lower, info = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge))
    return lower, info != 0
