"""Tokens and experts: who gets what, in a layer made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from armor.calibrate.routed import add_other_tokens, linear_input, tokens_by_expert
from armor.errors import ArmorError
from armor.models.routed import Routed, find_routed
from armor.run.waves import passes, waves

WIDTH, INNER, COUNT, TOP = 8, 12, 4, 2


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Layer(nn.Module):
    """A mixture as transformers 4 writes them; `scale` is what its experts see of a token."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, COUNT, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(COUNT))
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, WIDTH)
        weights, chosen = self.gate(flat).softmax(-1).topk(TOP)
        out = self.shared(flat)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            part = expert(flat[None, token].reshape(-1, WIDTH) * self.scale)
            out = out.index_add(0, token, part * weights[token, slot, None])
        return out.view(hidden.shape)


@pytest.fixture
def block() -> nn.Module:
    torch.manual_seed(0)
    block = nn.Module()
    block.mlp = Layer()
    return block


INPUTS = torch.randn(2, 10, WIDTH, generator=torch.Generator().manual_seed(1))


def test_it_is_found(block: nn.Module) -> None:
    (routed,) = find_routed(block)
    assert routed == Routed("mlp", "experts", "mlp.gate", COUNT)
    assert routed.expert(3) == "mlp.experts.3"
    assert routed.inside("mlp.experts.12.up") == (12, "up")
    assert routed.holds("mlp.experts.1.up")
    assert not routed.holds("mlp.shared")


def test_tokens_are_those_of_the_router(block: nn.Module) -> None:
    (routed,) = find_routed(block)
    rows = tokens_by_expert(block, routed, INPUTS)
    chosen = block.mlp.gate(INPUTS.view(-1, WIDTH)).topk(TOP).indices
    for number in range(COUNT):
        assert torch.equal(rows[number], torch.where(chosen == number)[0])
    assert block.mlp(INPUTS).isfinite().all()  # everything is as it was
    assert "forward" not in vars(block.mlp.experts[0])


def test_experts_that_are_fed_something_else_are_refused(block: nn.Module) -> None:
    block.mlp.scale = 0.5
    with pytest.raises(ArmorError, match="not get rows of its input"):
        tokens_by_expert(block, find_routed(block)[0], INPUTS)


def test_the_input_of_a_linear_in_an_expert(block: nn.Module) -> None:
    expert, x = block.mlp.experts[1], INPUTS[0]
    assert torch.equal(linear_input(expert, "up", x), x)
    assert torch.equal(linear_input(expert, "down", x), expert.up(x).relu())


def test_other_tokens_are_evenly_spaced() -> None:
    rows, every = torch.tensor([3, 4]), torch.ones(10, dtype=torch.bool)
    assert add_other_tokens(rows, every, 0).tolist() == [3, 4]
    assert add_other_tokens(rows, every, 4).tolist() == [3, 4, 0, 2, 6, 8]
    assert sorted(add_other_tokens(rows, every, 99).tolist()) == list(range(10))
    every[5:] = False
    assert add_other_tokens(rows, every, 99).tolist() == [3, 4, 0, 1, 2]


def test_waves_take_all_experts_at_once() -> None:
    routed = Routed("mlp", "experts", "mlp.gate", 3)
    stages = [
        ["q", "k"],
        ["mlp.experts.1.up"],
        ["mlp.experts.1.down"],
        ["mlp.experts.2.up"],
        ["mlp.shared"],
    ]
    found = waves(stages, [routed], lambda name: name != "mlp.experts.0.up")
    assert [wave.stages for wave in found] == [
        [["q", "k"]],
        [["mlp.experts.1.up"], ["mlp.experts.2.up"]],
        [[f"mlp.experts.{number}.down"] for number in range(3)],
        [["mlp.shared"]],
    ]
    assert [wave.routed for wave in found] == [None, routed, routed, None]


def test_passes_are_bounded_by_the_size_of_their_moments() -> None:
    stages = [["a"], ["b"], ["c"], ["d"]]
    widths = {"a": 8192, "b": 8192, "c": 8192, "d": 20000}
    assert list(passes(stages, widths)) == [[["a"], ["b"]], [["c"]], [["d"]]]
