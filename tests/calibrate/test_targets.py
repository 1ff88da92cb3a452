"""Compensated targets against least squares on raw tokens; what held-out tokens choose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from armor.calibrate.sample import Sample
from armor.calibrate.targets import (
    DAMPINGS,
    Compensation,
    choose_compensation,
    compensated,
    missed_moment,
)

OUT, IN = 6, 10


def tokens(count: int, seed: int, lost: float = 0.5) -> Sample:
    """Inputs that have lost something of the dense ones, and a stream that has."""
    draw = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, IN, generator=draw)
    bent = torch.Generator().manual_seed(99)  # the same for all tokens
    inputs = dense - lost * dense @ (0.4 * torch.randn(IN, IN, generator=bent))
    residual = lost * dense @ torch.randn(IN, OUT, generator=bent)
    noise = 0.3 * torch.randn(count, OUT, generator=draw)
    return Sample(inputs, dense, residual + noise)


def weight() -> Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(7))


def moments(seen: Sample) -> tuple[Tensor, Tensor]:
    """X, and M of the dense weight."""
    count, own = len(seen.inputs), weight().to(seen.inputs.dtype)
    return seen.inputs.T @ seen.inputs / count, seen.missed(own).T @ seen.inputs / count


def least_squares(seen: Sample, damping: float) -> Tensor:
    """The weight that minimises ``mean |V x_p - W x_d - r|^2 + l |V - W|^2``: the equations of all
    tokens and of the penalty, stacked."""
    own, inputs, count = weight().double(), seen.inputs, len(seen.inputs)
    missed = seen.wanted(own) - inputs @ own.T
    ridge = damping * inputs.square().sum(0).mean() / count
    stacked = torch.cat((inputs, (count * ridge).sqrt() * torch.eye(IN, dtype=torch.float64)))
    right = torch.cat((missed, torch.zeros(IN, OUT, dtype=torch.float64)))
    return own + torch.linalg.lstsq(stacked, right).solution.T


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("damping", [1e-3, 0.3])
def test_it_is_the_best_weight_for_the_tokens(adds: bool, damping: float) -> None:
    seen = Sample(**{kind: tensor.double() for kind, tensor in tokens(200, 0).tensors().items()})
    seen, own = seen if adds else replace(seen, residual=None), weight().double()
    found = compensated(own, *moments(seen), Compensation(damping))
    torch.testing.assert_close(found, least_squares(seen, damping), rtol=1e-10, atol=1e-10)
    half = compensated(own, *moments(seen), Compensation(damping, 0.5))
    torch.testing.assert_close(half, (own + found) / 2)
    assert torch.equal(compensated(own, *moments(seen), Compensation(damping, 0.0)), own)
    single = [mean.float() for mean in moments(seen)]
    rounded = compensated(weight(), *single, Compensation(damping))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), found, rtol=1e-2, atol=1e-3)


def test_the_cross_moment_gives_the_same() -> None:
    seen = replace(tokens(50, 1), residual=None)
    second, missed = moments(seen)
    cross = seen.dense.T @ seen.inputs / 50
    torch.testing.assert_close(missed_moment(weight(), second, cross), missed)


@pytest.mark.parametrize(("count", "seed"), [(12, 0), (12, 1), (30, 2), (400, 3)])
def test_the_choice_misses_least_on_what_is_held_out(count: int, seed: int) -> None:
    """Among all dampings, and beliefs on a fine grid."""
    seen, held_out = tokens(count, seed), tokens(60, 100 + seed)
    parts = moments(seen)

    def missed(how: Compensation) -> float:
        return held_out.error(weight(), compensated(weight(), *parts, how))

    chosen = choose_compensation(weight(), *parts, held_out)
    tried = {
        (damping, step / 200): missed(Compensation(damping, step / 200))
        for damping in DAMPINGS
        for step in range(201)
    }
    damping, belief = min(tried, key=tried.__getitem__)
    assert chosen.damping == damping
    assert chosen.belief == pytest.approx(belief, abs=0.006)
    assert missed(chosen) <= min(tried.values()) * (1 + 1e-5)


def test_more_tokens_are_believed_more() -> None:
    held_out = tokens(2000, 50)
    few, many = (
        choose_compensation(weight(), *moments(tokens(count, 4)), held_out) for count in (11, 4000)
    )
    assert few.damping > many.damping == DAMPINGS[0]
    assert many.belief > 0.95


def test_nothing_to_gain_is_not_believed() -> None:
    seen = tokens(12, 5)
    right = tokens(60, 6)
    no_error = Sample(right.inputs, right.inputs)
    assert choose_compensation(weight(), *moments(seen), no_error).belief == 0.0
    # What is fitted tells the opposite of what is held out.
    assert right.residual is not None
    reversed_ = Sample(right.inputs, 2 * right.inputs - right.dense, -right.residual)
    assert choose_compensation(weight(), *moments(tokens(400, 5)), reversed_).belief == 0.0
    # Nothing was lost in either.
    none = Sample(seen.inputs, seen.inputs)
    chosen = choose_compensation(weight(), *moments(none), none)
    assert chosen.belief == 0.0
    assert torch.equal(compensated(weight(), *moments(none), chosen), weight())
