"""One layer through either solver."""

import pytest
import torch

from armor.config import PruneConfig
from armor.run.plan import LayerPlan
from armor.run.solve import LayerInputs, solve_layer


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize(("objective", "target"), [("full", "compensated"), ("diag", "dense")])
def test_solvers_beat_nowag(solver: str, objective: str, target: str) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 32, generator=draw)
    inputs = torch.randn(200, 32, generator=draw) @ torch.randn(32, 32, generator=draw)
    second = inputs.T @ inputs / 200
    cross = 0.9 * second if target == "compensated" else None
    config = PruneConfig(objective=objective, target=target, solver=solver, iterations=60)
    plan = LayerPlan("layer", (24, 32), 8)
    factors, record = solve_layer(plan, LayerInputs(weight, second, cross), config, torch.float32)
    assert record.certificate
    assert record.loss < record.nowag_loss
    assert record.losses[-1] == pytest.approx(record.loss, rel=1e-3)
    assert (factors.mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
