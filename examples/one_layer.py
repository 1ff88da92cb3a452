"""One matrix alone, without a model: problem, starts, solver, certificate, module.

python examples/one_layer.py
"""

from __future__ import annotations

from itertools import pairwise

import torch

from armor import ArmorLinear
from armor.baselines.nowag import nowag
from armor.baselines.sparsegpt import sparsegpt
from armor.factorize.exact import factorize
from armor.factorize.problem import Problem
from armor.sparse.pattern import Pattern


def main(size: int = 256, block: int = 16, iterations: int = 100, pattern: str = "2:4") -> float:
    """Prune a random (size, 2 * size) matrix; returns its loss as a share of SparseGPT's."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, 2 * size, generator=generator)
    # Inputs as a layer sees them: correlated, and some channels louder than others.
    mixing = torch.randn(2 * size, 2 * size, generator=generator) / size**0.5
    inputs = torch.randn(4096, 2 * size, generator=generator) @ mixing
    inputs *= torch.rand(2 * size, generator=generator).exp()

    # Minimise tr((W - ASB) X (W - ASB)^T), with X = E[x x^T].
    problem = Problem(target=weight, moment=inputs.T @ inputs / len(inputs))
    kept = Pattern.parse(pattern)
    starts = [nowag(problem, kept), sparsegpt(problem, kept)]
    factors, losses = factorize(problem, block, starts, iterations=iterations, pattern=kept)

    # The certificate: the loss never rose, and ends at or below that of every start.
    zero = problem.zero_loss()
    bounds = [problem.loss(start.dense()) / zero for start in starts]
    loss = problem.loss(factors.dense()) / zero
    assert all(after <= before for before, after in pairwise(losses))
    assert loss <= min(bounds)
    print(f"NoWag-P {bounds[0]:.4f}, SparseGPT {bounds[1]:.4f}, armor {loss:.4f}")

    # The module computes y = A (S (B x)) from packed data.
    layer = ArmorLinear.from_factors(factors)
    torch.testing.assert_close(layer(inputs), inputs @ factors.dense().T, rtol=1e-3, atol=1e-2)
    stored = sum(parameter.nbytes for parameter in layer.parameters())
    print(f"{layer}: {stored / weight.nbytes:.3f} of the dense bytes")
    return loss / bounds[1]


if __name__ == "__main__":
    main()
