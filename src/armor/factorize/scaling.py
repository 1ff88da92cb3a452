"""Moving diagonal scalings between the factors: they never cost anything at inference."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from armor.sparse.factors import Factors


def fold(factors: Factors, rows: Float[Tensor, " out"], cols: Float[Tensor, " in"]) -> Factors:
    """``diag(rows) A S B diag(cols)``, rows (out,) into A and cols (in,) into B."""
    assert factors.left is not None
    assert factors.right is not None
    return replace(
        factors,
        left=factors.left * _by_blocks(rows, factors.left).unsqueeze(-1),
        right=factors.right * _by_blocks(cols, factors.right).unsqueeze(-2),
    )


def balance(factors: Factors) -> Factors:
    """The same product with unit columns of A and unit rows of B, their norms moved into S.

    Keeps every factor well inside the range of float16 and bfloat16, whatever the solver did.
    """
    assert factors.left is not None
    assert factors.right is not None
    columns = _norms(factors.left, dim=-2)
    rows = _norms(factors.right, dim=-1)
    out, width = factors.core.shape
    return replace(
        factors,
        core=factors.core * columns.flatten()[:out, None] * rows.flatten()[:width],
        left=factors.left / columns.unsqueeze(-2),
        right=factors.right / rows.unsqueeze(-1),
    )


def _by_blocks(
    scale: Float[Tensor, " size"], blocks: Float[Tensor, "blocks b b"]
) -> Float[Tensor, "blocks b"]:
    """A vector as (blocks, b), padded with 1."""
    missing = blocks.shape[0] * blocks.shape[1] - scale.numel()
    return torch.nn.functional.pad(scale, (0, missing), value=1.0).view(blocks.shape[:2])


def _norms(blocks: Float[Tensor, "blocks b b"], dim: int) -> Float[Tensor, "blocks b"]:
    """L2 norms along `dim`, 1 where they are 0."""
    norms = torch.linalg.vector_norm(blocks, dim=dim)
    return torch.where(norms > 0, norms, 1.0)
