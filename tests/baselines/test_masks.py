"""Magnitude, Wanda and NoWag-P on cases worked by hand, and properties of all baselines."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armor.baselines.magnitude import magnitude
from armor.baselines.nowag import normalise, nowag
from armor.baselines.wanda import wanda
from armor.factorize.problem import Problem
from armor.methods import METHODS, packed_methods
from armor.sparse.pattern import Pattern

WEIGHT = torch.tensor([[4.0, -3.0, 2.0, 1.0], [1.0, 2.0, -3.0, 4.0]])

BASELINES = sorted(name for name in packed_methods() if not METHODS[name].wrappers)


def test_magnitude_keeps_the_largest() -> None:
    factors = magnitude(Problem(WEIGHT, torch.tensor([0.0, 0.0, 9.0, 9.0])))
    assert factors.core.tolist() == [[4, -3, 0, 0], [0, 0, -3, 4]]
    assert factors.left is None
    assert factors.right is None


def test_wanda_weighs_by_the_root_mean_square() -> None:
    # |W| sqrt(d) = [4, 3, 4, 5] and [1, 2, 6, 20]; a plain d would prefer column 3 twice over.
    factors = wanda(Problem(WEIGHT, torch.tensor([1.0, 1.0, 4.0, 25.0])))
    assert factors.core.tolist() == [[4, 0, 0, 1], [0, 0, -3, 4]]


def test_wanda_takes_the_diagonal_of_a_full_moment() -> None:
    moment = torch.full((4, 4), 0.5) + torch.diag(torch.tensor([0.5, 0.5, 3.5, 24.5]))
    factors = wanda(Problem(WEIGHT, moment))
    assert factors.core.tolist() == [[4, 0, 0, 1], [0, 0, -3, 4]]


def test_nowag_weighs_by_the_column_norms() -> None:
    # Column norms 10, 1, 1, 1: the large first column is divided down and loses.
    weight = torch.tensor([[8.0, 0.9, 0.85, 0.1], [6.0, 0.43589, 0.52678, 0.99499]])
    factors = nowag(Problem(weight, torch.ones(4)))
    assert factors.mask.tolist() == [[False, True, True, False], [True, False, False, True]]
    assert torch.equal(factors.core, weight * factors.mask)


def test_normalise_is_undone_by_its_scales() -> None:
    bar, rows, columns = normalise(WEIGHT.double())
    assert torch.allclose(rows[:, None] * bar * columns, WEIGHT.double(), atol=1e-12)
    assert torch.allclose(bar.norm(dim=1), torch.ones(2, dtype=torch.float64), atol=1e-4)


@given(
    method=st.sampled_from(BASELINES),
    rows=st.integers(1, 9),
    columns=st.integers(1, 23),
    pattern=st.sampled_from([(1, 4), (2, 4), (3, 4), (4, 8), (1, 3)]),
    dead=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_every_group_keeps_exactly_n(
    method: str,
    rows: int,
    columns: int,
    pattern: tuple[int, int],
    dead: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    n, m = pattern
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(50, columns, generator=generator, dtype=dtype)
    if dead:
        inputs[:, :: max(1, columns // 3)] = 0
    problem = Problem(
        torch.randn(rows, columns, generator=generator, dtype=dtype), inputs.T @ inputs / 50
    )
    factors = METHODS[method].load()(problem, Pattern(n, m))
    for start in range(0, columns, m):
        group = factors.mask[:, start : start + m]
        assert (group.sum(1) == min(n, group.shape[1])).all()
    assert factors.core.dtype == dtype
    assert torch.isfinite(factors.core).all()
    assert (factors.core[~factors.mask] == 0).all()


@pytest.mark.parametrize("method", BASELINES)
def test_the_problem_is_left_alone(method: str) -> None:
    target, moment = WEIGHT.clone(), torch.eye(4)
    METHODS[method].load()(Problem(target, moment))
    assert torch.equal(target, WEIGHT)
    assert torch.equal(moment, torch.eye(4))


@given(
    method=st.sampled_from(BASELINES),
    rows=st.integers(1, 9),
    columns=st.integers(1, 300),
    percent=st.integers(1, 99),
    seed=st.integers(0, 2**16),
)
def test_unstructured_keeps_exactly_the_budget(
    method: str, rows: int, columns: int, percent: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(50, columns, generator=generator)
    problem = Problem(torch.randn(rows, columns, generator=generator), inputs.T @ inputs / 50)
    pattern = Pattern.parse(f"{percent}%")
    factors = METHODS[method].load()(problem, pattern)
    assert factors.pattern == pattern
    assert int(factors.mask.sum()) == pattern.count((rows, columns))
    assert torch.isfinite(factors.core).all()
    assert (factors.core[~factors.mask] == 0).all()


def test_who_competes_with_whom_without_groups() -> None:
    """Magnitude: all with all. Wanda: the entries of a row."""
    problem = Problem(torch.tensor([[8.0, 7.0, 6.0, 5.0], [4.0, 3.0, 2.0, 1.0]]), torch.ones(4))
    half = Pattern.parse("50%")
    assert magnitude(problem, half).mask.sum(1).tolist() == [4, 0]
    assert wanda(problem, half).mask.tolist() == [[True, True, False, False]] * 2
