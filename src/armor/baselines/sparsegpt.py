"""SparseGPT (Frantar & Alistarh, arXiv 2301.00774): optimal brain surgeon, column by column.

Columns are visited in order. A pruned weight's error is spread over the columns not yet visited, in
the way that raises the loss ``tr(E X E^T)`` least; a visited column is never touched again. The
factor ``U`` (upper triangular, ``H^-1 = U^T U``) holds every inverse this needs: its row j, from
the diagonal on, is the first row of ``(H[j:, j:])^-1`` over the square root of its first entry.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from armor.baselines.obs_block import prune_block
from armor.baselines.select import largest
from armor.errors import ArmorError
from armor.factorize.problem import Problem
from armor.sparse.factors import Factors
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

DAMPING = 0.01  # of the mean diagonal, as in the paper
LAZY_BLOCK = 128  # columns between two updates of the rest of the matrix, as in the paper
_MAX_DAMPING = 1e4


def sparsegpt(problem: Problem, pattern: Pattern = TWO_OF_FOUR) -> Factors:
    """Prune to `pattern` and correct the kept values.

    The mask of a group is decided when its first column is reached: the largest
    ``w_c^2 / U_cc^2`` of the weights as they then are. Without groups it is decided for a lazy
    block of columns at once, and keeps of each its share of the whole matrix's entries.

    Weights of dead channels (mean square 0) count as zero.

    Returns:
        Factors without wrappers, in the dtype and on the device of ``problem.target``.

    Raises:
        ArmorError: the moment is only a diagonal, holds NaN or infinity, or cannot be factorised.
    """
    if not problem.is_full:
        raise ArmorError("SparseGPT needs the full second moment of the inputs, not its diagonal")
    upper = inverse_factor(problem.moment)
    # Transposed: a column of W is a contiguous row here.
    weight = problem.target.T.clone(memory_format=torch.contiguous_format)
    weight[problem.mean_square <= 0] = 0  # dead channels lose every contest for a place
    mask = torch.zeros_like(weight, dtype=torch.bool)
    columns = weight.shape[0]
    group = pattern.group or 1
    step = group * max(1, LAZY_BLOCK // group)
    budget = pattern.count((weight.shape[1], columns)) if pattern.is_unstructured else 0
    for start in range(0, columns, step):
        end = min(start + step, columns)
        block = upper[start:end, start:end].contiguous()
        if pattern.is_unstructured:
            scores = (weight[start:end] / block.diagonal().unsqueeze(1)).square()
            count = budget * end // columns - budget * start // columns
            mask[start:end] = largest(scores, count)
        error = prune_block(weight[start:end], block, mask[start:end], pattern.kept, group)
        weight[end:].addmm_(upper[start:end, end:].T, error, alpha=-1)
    return Factors(weight.T.contiguous(), mask.T.contiguous(), pattern=pattern)


def inverse_factor(moment: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
    """``U``, upper triangular with ``(X + damping I)^-1 = U^T U``, (in, in).

    The damping starts at 1 % of the mean diagonal and grows tenfold until the Cholesky
    factorisation succeeds. A dead channel (zero row and column) is left with the damping alone
    and takes no part in the updates.

    Raises:
        ArmorError: `moment` holds NaN or infinity, or no damping helps.
    """
    if not bool(torch.isfinite(moment).all()):
        raise ArmorError(
            "the input moment holds NaN or infinity; load the model in float32 or bfloat16, "
            "or use other calibration text"
        )
    mean = float(moment.diagonal().mean(dtype=torch.float64))
    scale = mean if mean > 0.0 else 1.0
    damping = DAMPING
    while damping <= _MAX_DAMPING:
        # H = L^T L with L lower, by factorising H with its rows and columns reversed;
        # U = L^-T then comes from one triangular inverse and H^-1 is never formed. Of a wide
        # layer each (in, in) counts: at most two live at a time.
        reversed_moment = moment.flip(0, 1)
        reversed_moment.diagonal().add_(damping * scale)
        reversed_factor, info = torch.linalg.cholesky_ex(reversed_moment)
        del reversed_moment
        if int(info) == 0:
            factor = reversed_factor.flip(0, 1)
            del reversed_factor
            eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device).mT
            return torch.linalg.solve_triangular(factor, eye, upper=True, out=eye)
        damping *= 10.0
    raise ArmorError("the input moment is not positive semi-definite; use more calibration text")
