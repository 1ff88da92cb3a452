"""Experts whose input depends on the router: Llama 4's, in a layer made by hand."""

from __future__ import annotations

import torch
from torch import nn

from armor.calibrate.routed import (
    keep_choice,
    noting_way,
    rows_in_use,
    taking_way,
    token_count,
    tokens_by_expert,
)
from armor.checkpoint.stacked import PLAIN_ROWS
from armor.models.expert import ArrangedExperts, Expert
from armor.models.routed import Routed, find_routed

WIDTH, COUNT = 8, 4


class Scaled(nn.Module):
    """As Llama 4's: every expert has a row for every token, times its score."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, COUNT, bias=False)
        linears = (
            [nn.Linear(WIDTH, 4, False), nn.Linear(WIDTH, 4, False), nn.Linear(4, WIDTH, False)]
            for _ in range(COUNT)
        )
        experts = (Expert(three, lambda a, b: a * b, ("w1", "w3", "w2")) for three in linears)
        self.experts = ArrangedExperts(experts, ("w1", "w3", "w2"), PLAIN_ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores, chosen = self.gate(x).sigmoid().topk(1)
        scores = torch.zeros(len(x), COUNT).scatter(1, chosen, scores)
        rows = (x * scores.T[..., None]).reshape(-1, WIDTH)
        return self.experts(rows).view(COUNT, len(x), -1).sum(0)


@torch.no_grad()
def test_arranged_experts_of_two_streams_meet_token_by_token() -> None:
    torch.manual_seed(0)
    block = nn.Module()
    block.add_module("mlp", Scaled())
    (routed,) = find_routed(block)
    assert routed == Routed("mlp.experts", "", "mlp.gate", COUNT)
    keep_choice(block, routed)
    given: list[torch.Tensor] = []
    block.mlp.experts.register_forward_pre_hook(lambda _module, args: given.append(args[0]))
    x = torch.randn(10, WIDTH)
    with noting_way(block, routed) as way:
        block.mlp(x)
    rows = tokens_by_expert(block, routed, given[0])
    in_use = rows_in_use(block, routed, given[0])
    best = block.mlp.gate(x).argmax(-1)
    for number in range(COUNT):
        assert torch.equal(rows[number], torch.where(best == number)[0] + number * len(x))
    assert int(in_use.sum()) == len(x) == token_count(block, routed, given[0])

    with taking_way(block, routed, way):
        block.mlp(-2 * x)
    torch.testing.assert_close(given[1], -2 * given[0])
    block.mlp(-2 * x)
    assert not torch.equal(given[2] != 0, given[0] != 0)
