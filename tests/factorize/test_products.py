"""Products in parts: what tensor cores make of them, played in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from armor.baselines.nowag import nowag
from armor.factorize import products
from armor.factorize.gpu_workspace import GpuWorkspace
from armor.factorize.problem import Problem
from armor.factorize.products import add_product, product


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the rest of a number is cut to the bits that TF32 has, sums are in float32."""
    split = products._split

    def cut(matrix: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        high, low = split(matrix, out)
        assert torch.equal(split(high)[0], high)  # no bit is lost of it
        return high, low.copy_(split(low.contiguous())[0])

    monkeypatch.setattr(products, "_split", cut)
    monkeypatch.setattr(products, "_by_tensor_cores", lambda matrix: matrix.dtype == torch.float32)


def random(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def test_products_are_as_exact_as_in_float32(tensor_cores: None) -> None:
    left, right, base = random(40, 300), random(300, 50, seed=1), random(40, 50, seed=2)
    size = left.abs() @ right.abs()
    found = product(left.float(), right.float())
    assert ((found - left.float().double() @ right.float().double()).abs() < 2**-20 * size).all()
    kept = base.float()
    add_product(kept, left.float(), right.float(), -1.0)
    exact = base.float().double() - left.float().double() @ right.float().double()
    assert ((kept - exact).abs() < 2**-20 * (size + base.abs())).all()
    into = torch.empty(40, 50)
    assert torch.equal(product(left.float(), right.float(), out=into), found)


def test_one_product_of_leading_bits_is_not() -> None:
    left, right = random(40, 300).float(), random(300, 50, seed=1).float()
    rough = products._split(left)[0] @ products._split(right)[0]
    error = (rough - left @ right).norm() / rough.norm()
    assert error > 2**-13


def test_the_loss_stays(tensor_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 0.1 % of float64's after each iteration, with inputs of very different sizes."""
    monkeypatch.setattr(GpuWorkspace, "panel_columns", 32)
    target = random(96, 128)
    inputs = random(400, 128, seed=1) * torch.logspace(-1, 1, 128, dtype=torch.float64)
    inputs += random(400, 1, seed=2)  # and with much in common
    moment = inputs.T @ inputs / 400
    moment += 0.01 * moment.diagonal().mean() * torch.eye(128, dtype=torch.float64)

    works = [
        GpuWorkspace(Problem(target.to(dtype), moment.to(dtype)), 8)
        for dtype in (torch.float64, torch.float32)
    ]
    exact, in_parts = (work.start(nowag(work.problem)) for work in works)
    for _ in range(5):
        for name in ("left", "right", "core"):
            getattr(in_parts, name).copy_(getattr(exact, name))
        in_parts.choice.copy_(exact.choice)
        for work, state in zip(works, (exact, in_parts), strict=True):
            work.iterate(state)
        assert float(in_parts.loss) == pytest.approx(float(exact.loss), rel=1e-3)
