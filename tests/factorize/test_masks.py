"""Any pattern in the sweep: tables, kernels against the plain one, prices, and the solver."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from armor.baselines.nowag import nowag
from armor.baselines.sparsegpt import sparsegpt
from armor.engines.threads import threads
from armor.factorize.exact import factorize
from armor.factorize.inverses import gain_tables, gain_terms, pair_inverses
from armor.factorize.kernels import reference_masks
from armor.factorize.masks import choice_from_mask, group_masks, group_size, mask_from_choice
from armor.factorize.problem import Problem
from armor.factorize.sweep import sweep
from armor.sparse.pattern import Pattern

PATTERNS = ["1:2", "1:4", "2:4", "3:4", "2:8", "4:8", "7:8", "50%"]


def grams(pattern: Pattern, quirk: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """G (2, 16, 16) and H (3, 16, 16), float64."""
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 16, 24, generator=draw, dtype=torch.float64) for n in (2, 3))
    if quirk == "dead":
        b[:, :9] = 0.0
        a[:, 2] = 0.0
    elif quirk == "singular":
        b[:, 1] = b[:, 0]
        b[:, 12] = b[:, 13]
    return a @ a.mT, b @ b.mT


@pytest.mark.parametrize("text", PATTERNS)
def test_choice_and_mask_are_inverse(text: str) -> None:
    pattern = Pattern.parse(text)
    count = len(group_masks(pattern))
    choice = torch.arange(count, dtype=torch.uint8).repeat(2).view(2, count)
    mask = mask_from_choice(choice, pattern)
    assert mask.shape == (2, count * group_size(pattern))
    assert torch.equal(choice_from_mask(mask, pattern), choice)


@pytest.mark.parametrize("quirk", ["none", "dead", "singular"])
@pytest.mark.parametrize("text", PATTERNS)
def test_tables_hold_gain_and_values_of_every_mask(text: str, quirk: str) -> None:
    pattern = Pattern.parse(text)
    _, right = grams(pattern, quirk)
    width, terms = group_size(pattern), gain_terms(pattern)
    tables = gain_tables(right, pattern)
    draw = torch.Generator().manual_seed(1)
    for group in range(16 // width):
        cols = slice(width * group, width * (group + 1))
        group_gram = right[1, cols, cols]
        partial_residual = group_gram @ torch.randn(width, generator=draw, dtype=torch.float64)
        found = tables[1, group] * partial_residual[terms.one] * partial_residual[terms.two]
        for code, mask in enumerate(group_masks(pattern)):
            at = list(mask)
            part = group_gram[at][:, at]
            values = torch.linalg.pinv(part, rtol=1e-6, hermitian=True) @ partial_residual[at]
            gain = float(found[terms.starts[code] : terms.starts[code + 1]].sum())
            assert gain == pytest.approx(float(partial_residual[at] @ values), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("price", [None, 0.3])
@pytest.mark.parametrize("quirk", ["none", "dead", "singular"])
@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [
        ("numba_masks", torch.float32, 1e-3),
        ("torch_masks", torch.float32, 1e-3),
        ("torch_masks", torch.float64, 1e-7),
    ],
)
def test_a_sweep_matches_the_plain_one(
    backend: str,
    dtype: torch.dtype,
    tolerance: float,
    text: str,
    quirk: str,
    price: float | None,
) -> None:
    pattern = Pattern.parse(text)
    left, right = grams(pattern, quirk)
    width, masks = group_size(pattern), group_masks(pattern)
    draw = torch.Generator().manual_seed(2)
    choice = torch.randint(0, len(masks), (32, 48 // width), generator=draw).to(torch.uint8)
    core = torch.randn(32, 48, generator=draw, dtype=torch.float64) * mask_from_choice(
        choice, pattern
    )
    weight = 3 * torch.randn(32, 48, generator=draw, dtype=torch.float64)
    blocks = (weight - core).unflatten(0, (2, 16)).unflatten(2, (3, 16))
    residual = torch.einsum("irs,isjc,jcd->irjd", left, blocks, right).reshape(32, 48)
    found, codes = core.to(dtype, copy=True), choice.clone()
    cost = None if price is None else torch.tensor(price * float(residual.abs().mean()))
    sweep(residual.to(dtype), found, codes, left.to(dtype), right.to(dtype), pattern, cost, backend)
    before = quadratic(weight - core, left, right)
    groups = 16 // width
    for i in range(2):
        for j in range(3):
            at = (slice(16 * i, 16 * i + 16), slice(16 * j, 16 * j + 16))
            number = slice(groups * j, groups * (j + 1))
            reference_masks.sweep_block(
                residual[at].numpy(),
                core[at].numpy(),
                choice[at[0], number].numpy(),
                left[i].numpy(),
                right[j].numpy(),
                masks,
                None if cost is None else float(cost),
            )
    assert not (found * ~mask_from_choice(codes, pattern)).any()
    if quirk == "none" and torch.equal(codes, choice):
        torch.testing.assert_close(found.double(), core, rtol=tolerance, atol=tolerance)
    assert quirk != "none" or dtype == torch.float32 or torch.equal(codes, choice)
    # After a tie, or what rounding makes one: the same value of what is minimised.
    values = [quadratic(weight - each.double(), left, right) for each in (found, core)]
    if cost is None:
        assert values[0] < before
        kept = [mask_from_choice(each, pattern).sum() for each in (codes, choice)]
        assert kept[0] == kept[1]
    else:
        for n, each in enumerate((codes, choice)):
            values[n] += float(cost) * int(mask_from_choice(each, pattern).sum())
    assert values[0] == pytest.approx(values[1], rel=tolerance)


def test_a_sweep_is_the_same_on_any_number_of_threads() -> None:
    """However the blocks are dealt out to them."""
    pattern = Pattern.parse("4:8")
    draw = torch.Generator().manual_seed(3)
    left, right = (torch.randn(n, 16, 24, generator=draw) for n in (37, 2))
    left, right = left @ left.mT, right @ right.mT
    residual = torch.randn(37 * 16, 32, generator=draw)
    found = []
    for count in (1, 2):
        core, codes = torch.zeros_like(residual), torch.zeros(37 * 16, 4, dtype=torch.uint8)
        with threads(count):
            sweep(residual, core, codes, left, right, pattern)
        found.append(core)
    assert torch.equal(*found)
    assert found[0].any()


def quadratic(error: Tensor, left: Tensor, right: Tensor) -> float:
    blocks = error.unflatten(0, (2, 16)).unflatten(2, (3, 16))
    return float((torch.einsum("irs,isjc,jcd->irjd", left, blocks, right) * blocks).sum())


def make_problem(rows: int, cols: int, full: bool) -> Problem:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4 * cols, cols, generator=draw)
    inputs = inputs @ torch.randn(cols, cols, generator=draw)
    moment = inputs.T @ inputs / len(inputs) + 0.1 * torch.eye(cols)
    target = torch.randn(rows, cols, generator=draw)
    return Problem(target, moment if full else moment.diagonal().contiguous())


@pytest.mark.parametrize(("rows", "cols"), [(32, 48), (21, 43)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("text", ["1:2", "1:4", "4:8", "3:8", "50%", "2%", "97%"])
def test_the_certificate_holds_for_every_pattern(
    text: str, full: bool, rows: int, cols: int
) -> None:
    problem, pattern = make_problem(rows, cols, full), Pattern.parse(text)
    starts = [nowag(problem, pattern)] + ([sparsegpt(problem, pattern)] if full else [])
    factors, losses = factorize(problem, 8, starts, 20, pattern=pattern)
    zero = problem.zero_loss()
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < min(problem.loss(start.dense()) for start in starts) / zero
    assert problem.loss(factors.dense()) / zero == pytest.approx(losses[-1], rel=1e-2, abs=1e-6)
    assert factors.pattern == pattern
    assert not factors.core[~factors.mask].any()
    if pattern.is_unstructured:
        assert int(factors.mask.sum()) == pattern.count((rows, cols))
    else:
        whole = cols // pattern.group * pattern.group
        groups = factors.mask[:, :whole].unflatten(1, (-1, pattern.group))
        assert (groups.sum(-1) == pattern.kept).all()


def test_freer_patterns_end_lower() -> None:
    """At the same density: 2:4 is a 4:8, and both are unstructured."""
    problem = make_problem(64, 64, full=True)
    ends = []
    for pattern in map(Pattern.parse, ("50%", "4:8", "2:4")):
        start = nowag(problem, pattern)
        ends.append(factorize(problem, 8, [start], 40, pattern=pattern)[1][-1])
    assert ends == sorted(ends)


def test_dead_inputs_and_rows_keep_the_count() -> None:
    problem = make_problem(24, 40, full=False)
    problem.target[3] = 0.0
    problem.moment[:30] = 0.0
    pattern = Pattern.parse("40%")
    factors, _ = factorize(problem, 16, [nowag(problem, pattern)], 20, pattern=pattern)
    assert int(factors.mask.sum()) == pattern.count((24, 40))
    assert torch.isfinite(factors.dense()).all()


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "50%"])
def test_entries_that_all_but_cancel_get_no_large_values(pattern: str) -> None:
    gram = torch.eye(8)
    gram[0, 1] = gram[1, 0] = 1 - 1e-4  # noise in the difference would come out 70 times as large
    parsed = Pattern.parse(pattern)
    assert gain_tables(gram.unsqueeze(0), parsed).abs().max() < 2
    assert pair_inverses(gram.unsqueeze(0)).abs().max() < 2
