"""One layer through either solver."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from armor.config import PruneConfig
from armor.factorize.exact import factorize
from armor.factorize.problem import Problem
from armor.run import solve
from armor.run.plan import LayerPlan
from armor.run.solve import CertificateError, LayerInputs, solve_certified, solve_layer
from armor.sparse.factors import Factors
from armor.sparse.masks import nm_mask


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize(("objective", "target"), [("full", "compensated"), ("diag", "dense")])
def test_solvers_beat_nowag(solver: str, objective: str, target: str) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 32, generator=draw)
    inputs = torch.randn(200, 32, generator=draw) @ torch.randn(32, 32, generator=draw)
    second = inputs.T @ inputs / 200
    lost = -0.1 * weight @ second if target == "compensated" else None
    config = PruneConfig(
        objective=objective, target=target, solver=solver, iterations=60, target_damping=1e-2
    )
    plan = LayerPlan("layer", (24, 32), 8)
    factors, record = solve_layer(plan, LayerInputs(weight, second, lost), config, torch.float32)
    assert record.certificate
    assert record.loss < record.nowag_loss
    assert record.losses[-1] == pytest.approx(record.loss, rel=1e-3)
    assert (factors.mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert len(record.times) == len(record.losses)
    assert record.times[0] > 0
    assert all(before <= after for before, after in pairwise(record.times))
    assert record.times[-1] <= record.seconds
    goal = weight if lost is None else 0.9 * weight
    missed = ((goal - factors.dense()) @ inputs.T).square().sum(0).mean()
    assert record.output_error == pytest.approx(float(missed), rel=0.05)
    assert record.output_energy == pytest.approx(
        float((goal @ inputs.T).square().sum(0).mean()), rel=0.05
    )


def test_adams_times_go_with_its_losses() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, second = torch.randn(8, 16, generator=draw), torch.eye(16)
    config = PruneConfig(objective="diag", target="dense", solver="adam", iterations=250)
    plan = LayerPlan("layer", (8, 16), 4)
    _, record = solve_layer(plan, LayerInputs(weight, second), config, torch.float32)
    assert len(record.times) == len(record.losses) == 4  # start, 100, 200, 250


def test_a_layer_that_breaks_the_certificate_is_solved_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def coarse(problem: Problem, *args: Any) -> tuple[Factors, list[float]]:
        factors, losses = factorize(problem, *args)
        if problem.target.dtype == torch.float32:
            factors.core.mul_(1e10)
        return factors, losses

    monkeypatch.setattr(solve, "factorize", coarse)
    draw = torch.Generator().manual_seed(0)
    weight, second = torch.randn(16, 16, generator=draw), torch.eye(16)
    config = PruneConfig(target="dense", iterations=5)
    plan = LayerPlan("layer", (16, 16), 8, note="small")

    def inputs(precision: torch.dtype) -> LayerInputs:
        return LayerInputs(weight.to(precision), second.to(precision))

    with pytest.raises(CertificateError, match="layer: loss"):
        solve_layer(plan, inputs(torch.float32), config, torch.bfloat16)
    factors, record = solve_certified(plan, inputs, config, torch.bfloat16)
    assert record.certificate
    assert record.note == "small; solved in float64: float32 was too coarse"
    assert factors.core.dtype == torch.bfloat16
    assert record.loss < record.nowag_loss


@pytest.mark.parametrize("objective", ["full", "diag"])
def test_a_layer_that_is_all_but_sparse_already(objective: str) -> None:
    """What wrappers could win is less than what rounding them to bfloat16 costs."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(36, 44, generator=draw)
    weight = torch.where(nm_mask(weight.abs()), weight, 3e-3 * weight).bfloat16()
    config = PruneConfig(objective=objective, target="dense", iterations=20)
    plan = LayerPlan("layer", (36, 44), 8)

    def inputs(precision: torch.dtype) -> LayerInputs:
        return LayerInputs(weight.to(precision), torch.eye(44, dtype=precision))

    factors, record = solve_certified(plan, inputs, config, torch.bfloat16)
    assert record.certificate
    assert record.note == "kept as nowag has it: nothing better was found in bfloat16"
    assert record.loss == record.nowag_loss > 0
    assert factors.block == 8
    assert torch.equal(factors.dense(), weight * factors.mask)
