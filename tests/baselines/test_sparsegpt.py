"""SparseGPT against its definition: explicit inverses, one column at a time, no lazy blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from armor.baselines import obs_triton
from armor.baselines.obs_block import prune_block, prune_block_torch
from armor.baselines.sparsegpt import sparsegpt
from armor.baselines.wanda import wanda
from armor.errors import ArmorError
from armor.factorize.problem import Problem
from armor.sparse.pattern import Pattern


def make_problem(rows: int, columns: int, seed: int = 0) -> Problem:
    """A random weight with inputs correlated over the channels."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64)
    inputs = inputs @ (torch.eye(columns, dtype=torch.float64) + 0.3 * mix)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return Problem(weight, inputs.T @ inputs / len(inputs))


def by_definition(problem: Problem, n: int, m: int) -> tuple[Tensor, Tensor]:
    """OBS elimination: before column j, the inverse Hessian of the columns j... by inversion."""
    weight = problem.target.double().clone()
    hessian = problem.moment.double().clone()
    columns = weight.shape[1]
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for j in range(columns):
        if j % m == 0:
            ends = range(j, min(j + m, columns))
            pivots = torch.stack([torch.linalg.inv(hessian[k:, k:])[0, 0] for k in ends])
            scores = weight[:, j : j + m] ** 2 / pivots
            kept = scores.topk(min(n, len(pivots)), dim=1).indices
            mask[:, j : j + m] = torch.zeros_like(scores, dtype=torch.bool).scatter(1, kept, True)
        inverse = torch.linalg.inv(hessian[j:, j:])
        removed = torch.where(mask[:, j], 0, weight[:, j])
        weight[:, j:] -= removed[:, None] / inverse[0, 0] * inverse[0]
    return weight * mask, mask


# 131 and 270 columns cross a lazy block; 131 and 6 end in a partial group.
@pytest.mark.parametrize(
    ("columns", "n", "m"), [(6, 2, 4), (64, 2, 4), (131, 2, 4), (270, 2, 4), (40, 4, 8), (45, 1, 3)]
)
def test_equals_its_definition(columns: int, n: int, m: int) -> None:
    problem = make_problem(7, columns, seed=columns)
    core, mask = by_definition(problem, n, m)
    factors = sparsegpt(problem, Pattern(n, m))
    assert torch.equal(factors.mask, mask)
    assert torch.allclose(factors.core, core, rtol=1e-8, atol=1e-9)


def test_float32_is_close_to_float64() -> None:
    problem = make_problem(32, 160)
    single = Problem(problem.target.float(), problem.moment.float())
    factors = sparsegpt(single)
    assert factors.core.dtype == torch.float32
    exact = problem.loss(sparsegpt(problem).core)
    assert problem.loss(factors.core.double()) == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("columns", "rows", "n", "m"), [(128, 70, 2, 4), (30, 1, 2, 4), (24, 5, 3, 8)]
)
def test_backends_agree(dtype: torch.dtype, columns: int, rows: int, n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(columns, rows, generator=generator, dtype=dtype)
    upper = torch.randn(columns, columns, generator=generator, dtype=dtype).mul(0.1).triu(1)
    upper += torch.diag(torch.rand(columns, generator=generator, dtype=dtype) + 0.5)
    results = []
    for backend in (prune_block, prune_block_torch):
        work, mask = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
        error = backend(work, upper, mask, n, m)
        results.append((work, mask, error))
    (work, mask, error), (work_2, mask_2, error_2) = results
    assert torch.equal(mask, mask_2)
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {}
    assert torch.allclose(work, work_2, **tolerance)
    assert torch.allclose(error, error_2, **tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_beats_wanda_on_correlated_inputs(seed: int) -> None:
    problem = make_problem(48, 96, seed)
    assert problem.loss(sparsegpt(problem).core) < 0.8 * problem.loss(wanda(problem).core)


def test_dead_channels_are_pruned_first_and_spread_nothing() -> None:
    problem = make_problem(6, 16)
    dead = [1, 2, 5, 12]
    moment = problem.moment.clone()
    moment[dead] = 0
    moment[:, dead] = 0
    factors = sparsegpt(Problem(problem.target, moment))
    assert not factors.mask[:, dead].any()
    changed = problem.target.clone()
    changed[:, dead] += 0.5
    other = sparsegpt(Problem(changed, moment))
    assert torch.allclose(other.core, factors.core)


def test_no_input_at_all_gives_zeros() -> None:
    factors = sparsegpt(Problem(torch.tensor([[4.0, -3.0, 2.0, 1.0]]), torch.zeros(4, 4)))
    assert factors.core.tolist() == [[0, 0, 0, 0]]
    assert factors.mask.sum() == 2


def test_an_indefinite_moment_is_damped_until_it_works() -> None:
    problem = make_problem(5, 12)
    vector = torch.ones(12, dtype=torch.float64) / 12**0.5
    moment = problem.moment - 3 * problem.moment.diagonal().mean() * torch.outer(vector, vector)
    assert torch.linalg.eigvalsh(moment)[0] < -0.5
    assert torch.isfinite(sparsegpt(Problem(problem.target, moment)).core).all()


def test_a_diagonal_moment_is_refused() -> None:
    with pytest.raises(ArmorError, match="full second moment"):
        sparsegpt(Problem(torch.ones(2, 4), torch.ones(4)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_moment_that_is_not_finite_is_refused(value: float) -> None:
    moment = torch.eye(4)
    moment[1, 1] = value
    with pytest.raises(ArmorError, match="NaN or infinity"):
        sparsegpt(Problem(torch.ones(2, 4), moment))


def test_a_negative_moment_is_refused() -> None:
    with pytest.raises(ArmorError, match="positive semi-definite"):
        sparsegpt(Problem(torch.ones(2, 4), -1e9 * torch.eye(4)))


@pytest.mark.skipif(obs_triton.triton is None, reason="triton is not installed")
@pytest.mark.parametrize(("columns", "rows"), [(128, 19), (20, 8), (4, 3)])
def test_the_triton_kernel_prunes_as_torch_does(columns: int, rows: int) -> None:
    draw = torch.Generator().manual_seed(columns)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weight = torch.randn(columns, rows, generator=draw).to(device)
    weight[:, -1] = weight[0, -1]  # equal scores
    upper = torch.eye(columns) + 0.2 * torch.randn(columns, columns, generator=draw).triu(1)
    upper = upper.to(device)
    found, expected = [], []
    for result, prune in (
        (found, lambda *given: obs_triton.prune_block(*given)),
        (expected, lambda *given: prune_block_torch(*given, 2, 4)),
    ):
        pruned, mask = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
        result += [mask, pruned, prune(pruned, upper, mask)]
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
