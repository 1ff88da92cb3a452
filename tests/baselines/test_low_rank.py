"""SparseGPT plus low rank: the correction is the best of its rank, and helps."""

from __future__ import annotations

import pytest
import torch

from armor.baselines import low_rank as module
from armor.baselines.low_rank import leading_span, sparsegpt_low_rank
from armor.baselines.sparsegpt import DAMPING, sparsegpt
from armor.factorize.problem import Problem


def case(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(rows)
    inputs = torch.randn(400, columns, generator=draw) @ torch.randn(
        columns, columns, generator=draw
    )
    return torch.randn(rows, columns, generator=draw), inputs.T @ inputs / 400


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (40, 16), (16, 40)])
def test_the_best_of_its_rank(rows: int, columns: int) -> None:
    """Against the singular value decomposition of E L, in float64."""
    error, moment = case(rows, columns)
    wide = moment.double()
    damped = wide + DAMPING * wide.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    lower = torch.linalg.cholesky(damped)
    left, values, right = torch.linalg.svd(error.double() @ lower, full_matrices=False)
    for rank in (1, 5, min(rows, columns)):
        best = (left[:, :rank] * values[:rank]) @ right[:rank] @ torch.linalg.inv(lower)
        span = leading_span(error.double(), moment, rank)
        found = span @ (span.mT @ error.double())
        assert torch.linalg.matrix_rank(found, rtol=1e-5) == rank
        torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-4)
        again = leading_span(error.double(), moment, rank, span)
        torch.testing.assert_close(again @ again.mT, span @ span.mT, rtol=1e-6, atol=1e-6)


def test_dead_inputs_and_no_error() -> None:
    error, moment = case(12, 16)
    moment[3] = moment[:, 3] = 0
    assert torch.isfinite(sparsegpt_low_rank(Problem(error, moment), rank=4).dense()).all()
    assert not sparsegpt_low_rank(Problem(torch.zeros(12, 16), moment), rank=4).dense().any()


def test_it_helps_and_rounds_help_further(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(*case(32, 48))
    losses = [problem.loss(sparsegpt(problem).core)]
    assert problem.loss(sparsegpt_low_rank(problem, rank=0).dense()) == losses[0]
    for rounds in (1, 2, 10):
        monkeypatch.setattr(module, "ROUNDS", rounds)
        losses.append(problem.loss(sparsegpt_low_rank(problem, rank=3).dense()))
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 0.95 * losses[0]
    assert losses[3] < 0.95 * losses[1]
