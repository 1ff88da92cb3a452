"""Rounding inside the solver's steps: the kernel and its oracle, the grid, what is certified."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from armor.baselines.nowag import nowag
from armor.checkpoint.format import LayerSpec
from armor.factorize.exact import factorize
from armor.factorize.grid import Grid, kept_values, put_values
from armor.factorize.kernels import rounding_numba, rounding_reference
from armor.factorize.masks import choice_from_mask
from armor.factorize.problem import Problem
from armor.factorize.rounding import (
    Storage,
    between_identities,
    equalised,
    round_core,
    round_factors,
)
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES, FP8, INT4, INT8, SCALE_GROUP, Levels
from armor.sparse.masks import nm_mask

FORMS = [(core, wrappers) for core in CORES for wrappers in (None, "int8")]


def random_block(size: int, levels: Levels, seed: int) -> list[np.ndarray]:
    """Arguments of `sweep_block` up to the grams, float64: a core on the grid, and its residual."""
    draw = np.random.default_rng(seed)
    left, right = draw.normal(size=(2, size, size))
    gram_left, gram_right = left.T @ left, right @ right.T
    steps = draw.uniform(0.05, 0.2, (size, size // 4))
    steps[draw.random(steps.shape) < 0.1] = 0
    core = torch.from_numpy(draw.normal(size=(size, size)))
    mask = nm_mask(core.abs())
    choice = choice_from_mask(mask)
    values = draw.choice(levels.all(), (size, size // 2)) * steps.repeat(2, axis=1)
    values = torch.from_numpy(values)
    core = put_values(values, choice, core).numpy()
    residual = draw.normal(size=(size, size)) * 3
    return [residual, core, choice.numpy(), steps, gram_left, gram_right]


@pytest.mark.parametrize("levels", [INT8, INT4, FP8], ids=["int8", "int4", "fp8"])
@pytest.mark.parametrize("size", [4, 8, 20])
def test_the_kernel_does_what_its_oracle_does(size: int, levels: Levels) -> None:
    for seed in range(8):
        given = random_block(size, levels, seed)
        residual, core, choice, steps, gram_left, gram_right = (each.copy() for each in given)
        rounding_reference.sweep_block(*given, levels)
        tensors = [torch.from_numpy(each) for each in (residual, core, choice, steps)]
        grams = torch.from_numpy(gram_left)[None], torch.from_numpy(gram_right)[None]
        rounding_numba.sweep(*tensors, *grams, levels)
        assert np.array_equal(choice, given[2])
        np.testing.assert_allclose(core, given[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("levels", [INT8, INT4, FP8], ids=["int8", "int4", "fp8"])
def test_a_sweep_lowers_the_loss_and_stays_on_the_grid(levels: Levels) -> None:
    residual, core, choice, steps, gram_left, gram_right = random_block(16, levels, 3)
    before = core.copy()
    rounding_reference.sweep_block(residual, core, choice, steps, gram_left, gram_right, levels)
    change = core - before
    gained = 2 * (change * residual).sum() - (change @ gram_right * (gram_left @ change)).sum()
    assert gained > 0
    assert ((core != 0).reshape(16, 4, 4).sum(-1) <= 2).all()
    with np.errstate(invalid="ignore"):
        codes = kept_values(torch.from_numpy(core), torch.from_numpy(choice)).numpy()
        codes = codes / steps.repeat(2, axis=1)
    codes = codes[np.isfinite(codes), None]
    distances = np.abs(codes - levels.all()).min(axis=1)
    np.testing.assert_allclose(distances, 0, atol=1e-9)


def test_a_group_takes_the_best_of_all_its_values() -> None:
    """A single group: what the sweep finds is near the best of all masks and pairs of levels."""
    found, best = 0.0, 0.0
    for seed in range(40):
        residual, core, choice, steps, gram_left, gram_right = random_block(4, INT4, seed)
        steps[:] = 0.3
        core[:] = 0
        gram_left[:] = np.eye(4)
        rounding_reference.sweep_block(residual, core, choice, steps, gram_left, gram_right, INT4)
        one = np.eye(4)[0, 0]
        found += rounding_reference.gain(core[0], residual[0], gram_right, one)
        levels = (np.arange(INT4.lowest, INT4.highest + 1) + INT4.offset) * 0.3
        best += max(
            rounding_reference.gain(place_pair(one_, two_, a, b), residual[0], gram_right, one)
            for one_ in range(4)
            for two_ in range(one_ + 1, 4)
            for a in levels
            for b in levels
        )
    assert 0.97 * best < found <= best * (1 + 1e-9)


def place_pair(one: int, two: int, first: float, second: float) -> np.ndarray:
    values = np.zeros(4)
    values[one], values[two] = first, second
    return values


def make(rows: int, cols: int, block: int, full: bool = True) -> tuple[Problem, Factors]:
    """A problem with outlying inputs, and its factors by a few iterations."""
    draw = torch.Generator().manual_seed(rows + cols)
    weight = torch.randn(rows, cols, generator=draw)
    inputs = torch.randn(3 * cols, cols, generator=draw) * torch.rand(cols, generator=draw).add(0.1)
    inputs[:, ::7] *= 6
    moment = inputs.T @ inputs / len(inputs)
    problem = Problem(weight, moment if full else moment.diagonal().contiguous())
    factors, _ = factorize(problem, block, [nowag(problem)], 10)
    return problem, factors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("core", "wrappers"), FORMS)
@pytest.mark.parametrize("shape", [(32, 64, 16), (24, 150, 8), (21, 30, 4), (8, 9, 8)])
def test_rounded_factors_are_what_is_stored(
    shape: tuple[int, int, int], core: str, wrappers: str | None, dtype: torch.dtype
) -> None:
    problem, factors = make(*shape)
    found, nearest, losses = round_factors(problem, factors, Storage(core, wrappers, dtype))
    assert all(after <= before for before, after in pairwise(losses))
    loss = problem.loss(found.dense()) / problem.zero_loss()
    assert loss == pytest.approx(losses[-1], rel=1e-3)
    assert problem.loss(nearest.dense()) / problem.zero_loss() == pytest.approx(losses[0], rel=1e-3)
    packed = PackedLayer.from_factors(found)
    assert packed.core == core
    assert packed.dtype == dtype
    assert (packed.left.dtype == torch.int8) == (wrappers is not None)
    back = packed.to_factors()
    for one, two in ((back.core, found.core), (back.left, found.left), (back.right, found.right)):
        assert torch.equal(one, two)
    assert torch.equal(back.mask, found.mask)
    again = PackedLayer.from_factors(back).tensors()
    assert all(torch.equal(own, again[part]) for part, own in packed.tensors().items())


@pytest.mark.parametrize("core", CORES)
def test_padding_has_no_scales_of_its_own(core: str) -> None:
    """A last block that ends far beyond the matrix."""
    problem, factors = make(100, 128, 96)
    found, _, _ = round_factors(problem, factors, Storage(core, "int8", torch.float32), None, 1)
    shapes = LayerSpec((100, 128), 96, core=core, wrappers="int8").tensor_shapes()
    stored = PackedLayer.from_factors(found).tensors()
    assert {part: tuple(tensor.shape) for part, tensor in stored.items()} == shapes


def test_rounding_inside_loses_less_than_half_of_rounding_afterwards() -> None:
    problem, factors = make(64, 128, 16)
    before = problem.loss(factors.dense()) / problem.zero_loss()
    _, _, losses = round_factors(problem, factors, Storage("int4", None, torch.bfloat16))
    assert losses[-1] - before < 0.5 * (losses[0] - before)


def test_a_problem_with_scaled_rows_is_stored_for_the_weight() -> None:
    """What is returned is of the weight; the loss that is lowered is that of the scaled rows."""
    problem, factors = make(24, 32, 8, full=False)
    rows = torch.rand(24, 1, generator=torch.Generator().manual_seed(1)) + 0.2
    scaled = Problem(problem.target / rows, problem.moment)
    storage = Storage("int4", "int8", torch.bfloat16)
    found, _, losses = round_factors(scaled, factors, storage, rows)
    loss = scaled.loss(found.dense() / rows) / scaled.zero_loss()
    assert loss == pytest.approx(losses[-1], rel=1e-3)
    packed = PackedLayer.from_factors(found)
    assert torch.equal(packed.to_factors().left, found.left)


def test_equal_columns_are_the_same_matrix() -> None:
    _, factors = make(24, 32, 8)
    equal = equalised(factors)
    torch.testing.assert_close(equal.dense(), factors.dense(), rtol=1e-4, atol=1e-4)
    sizes = equal.core.square().sum(0) / equal.mask.sum(0).clamp_min(1)
    sizes = sizes[equal.mask.any(0)]
    torch.testing.assert_close(sizes, sizes[:1].expand_as(sizes), rtol=1e-3, atol=0)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_identities_around_a_rounded_core_change_nothing(core: str, dtype: torch.dtype) -> None:
    problem, _ = make(24, 150, 8)
    storage = Storage(core, "int8", dtype)
    alone = round_core(problem, nowag(problem), storage)
    between = between_identities(alone, 8, storage)
    packed = PackedLayer.from_factors(between)
    assert packed.left.dtype == torch.int8
    assert torch.equal(packed.to_factors().dense(), alone.dense())


def test_scales_are_the_best_of_those_tried() -> None:
    core = torch.zeros(2, 2 * SCALE_GROUP + 8)
    core[:, ::2] = torch.randn(2, SCALE_GROUP + 4, generator=torch.Generator().manual_seed(0))
    core[1] = 0
    choice = choice_from_mask(nm_mask((torch.arange(core.numel()).view_as(core) % 2 == 0).float()))
    grid = Grid.fitted(INT4, core, choice, torch.ones(core.shape[1]), torch.float32)
    assert grid.scales.shape == (2, 2)
    assert (grid.scales[1] == 0).all()
    assert torch.equal(grid.nearest(core, choice)[1], core[1])
    plain = Grid(INT4, grid.scales.clone())
    plain.scales[0, 0] = core[0, : 2 * SCALE_GROUP].abs().max() / INT4.largest
    error = (grid.nearest(core, choice) - core).square().sum()
    assert error < (plain.nearest(core, choice) - core).square().sum()


def test_dead_inputs_and_zero_rows_stay_finite() -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    moment = torch.eye(32)
    moment[5, 5] = moment[6, 6] = 0
    problem = Problem(weight, moment)
    factors, _ = factorize(problem, 8, [nowag(problem)], 5)
    found, _, losses = round_factors(problem, factors, Storage("int4", "int8", torch.bfloat16))
    assert np.isfinite(losses).all()
    assert bool(torch.isfinite(found.dense()).all())
