"""Gradients go back through what blocks hand on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from armor.calibrate.call import BlockCall
from armor.calibrate.gradients import Draw, block_gradient
from armor.calibrate.state import State


class Block(nn.Module):
    """A linear; the first of three hands its output on, the last adds it."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, shared: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.linear(hidden)
        if self.index == 0:
            shared["first"] = output * hidden
        return output + shared["first"] if self.index == 2 else output


def test_they_are_those_of_the_blocks_together() -> None:
    torch.manual_seed(0)
    blocks = [Block(index) for index in range(3)]
    hidden, weights = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    shared: dict[str, Tensor] = {}
    whole: Any = hidden
    for block in blocks:
        whole = block(whole, shared)
    (expected,) = torch.autograd.grad((whole * weights).sum(), hidden)

    call = BlockCall((), {"shared": {}}, lambda _: 0)
    before = [State(hidden.detach())]
    for block in blocks:
        before.append(call.run(block, before[-1]))
    gradient = State(weights)
    for block, state in zip(reversed(blocks), reversed(before[:-1]), strict=True):
        gradient, samples = block_gradient(block, call, state, gradient, ["linear"], Draw(1.0, 0))
        assert set(samples) == {"inputs/linear", "gradients/linear"}
    torch.testing.assert_close(gradient.hidden, expected)
    assert not gradient.carried
