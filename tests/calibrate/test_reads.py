"""Whose weight a block reads, beside calling it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from armor.calibrate.reads import weights_read
from armor.calibrate.stream import BlockCall

WIDTH = 8


class Reading(nn.Module):
    """Linears that are called, read, both, asked for their dtype, and left alone."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("called", "read", "both", "asked", "idle", "through_data"):
            self.add_module(name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.called(x) + self.asked(x.to(self.asked.weight.dtype))
        x = x @ self.read.weight.T + self.read.bias
        x = x + x @ self.through_data.weight.data.float()
        return self.both(x) + nn.functional.linear(x, self.both.weight)


def test_only_what_is_computed_with_counts() -> None:
    block = Reading()
    hidden = torch.zeros(1, 3, WIDTH)
    found = weights_read(block, BlockCall((), {}), hidden)
    assert found == {"read", "both", "through_data"}
    assert not any(module._forward_hooks for module in block.modules())
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_results_are_those_without_a_watch() -> None:
    block, hidden = Reading(), torch.randn(1, 3, WIDTH)
    before = block(hidden)
    weights_read(block, BlockCall((), {}), hidden)
    assert torch.equal(block(hidden), before)
