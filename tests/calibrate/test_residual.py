"""Which linears of a block add to the residual stream, seen in a run; the stream before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from armor.calibrate.call import BlockCall
from armor.calibrate.form import Form, hidden_in
from armor.calibrate.residual import BLOCK_INPUT, given_to, traced
from armor.calibrate.state import State

WIDTH = 8


class Block(nn.Module):
    """Halves as of a decoder, of which only the order of norms and sums is real.

    `order`: "pre" (Llama's), "parallel" (both halves read one norm, and their sum is added),
    "in turn" (likewise, added one after the other), "post" (a norm on each sum, as GPT's),
    "sandwich" (one on what each half puts out, too, as Gemma 2's).
    """

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.first_norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.first_after, self.second_after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up_proj, self.down_proj = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.order in ("parallel", "in turn"):
            read = self.first_norm(hidden)
            attended, fed = self.attention(read), self.mlp(read)
            together = self.order == "parallel"
            return hidden + (attended + fed) if together else hidden + attended + fed
        if self.order == "post":
            hidden = self.first_norm(hidden + self.attention(hidden))
            last: Tensor = self.second_norm(hidden + self.mlp(hidden))
            return last
        attended = self.attention(self.first_norm(hidden))
        hidden = hidden + (self.first_after(attended) if self.order == "sandwich" else attended)
        fed = self.mlp(self.second_norm(hidden))
        return hidden + (self.second_after(fed) if self.order == "sandwich" else fed)

    def attention(self, read: Tensor) -> Tensor:
        mixed: Tensor = self.o_proj(torch.tanh(self.v_proj(read)).cumsum(1))
        return mixed

    def mlp(self, read: Tensor) -> Tensor:
        fed: Tensor = self.down_proj(torch.relu(self.up_proj(read)))
        return fed


def call() -> BlockCall:
    made = BlockCall((), {}, lambda _: 0)
    made.form, made.shape = Form.of(torch.zeros(1)), (2, 3)
    return made


def bases(block: nn.Module, hidden: Tensor) -> tuple[dict[str, str], dict[str, Tensor]]:
    with torch.no_grad(), traced(block, hidden) as trace:
        after = block(hidden)
    return trace.bases(after), trace.given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pre_norm_block(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block, hidden = Block("pre").to(dtype), torch.randn(2, 3, WIDTH, dtype=dtype)
    found, given = bases(block, hidden)
    assert found == {"o_proj": BLOCK_INPUT, "down_proj": "second_norm"}
    with torch.no_grad():
        attended = hidden + block.attention(block.first_norm(hidden))
    assert torch.equal(given["second_norm"], attended)


def test_a_llama(make_llama: Callable[..., Any]) -> None:
    model = make_llama()
    block = model.model.layers[1]
    with torch.no_grad():
        hidden = model(torch.arange(20)[None], output_hidden_states=True).hidden_states[1]
        with traced(block, hidden) as trace:
            after: list[Tensor] = []
            handle = block.register_forward_hook(lambda *call: after.append(hidden_in(call[-1])))
            model(torch.arange(20)[None])
            handle.remove()
    assert trace.bases(after[0]) == {
        "self_attn.o_proj": BLOCK_INPUT,
        "mlp.down_proj": "post_attention_layernorm",
    }


def test_what_a_linear_is_given_and_the_stream_before_it() -> None:
    torch.manual_seed(0)
    block, state = Block("pre"), State(torch.randn(2, 3, WIDTH))
    with torch.no_grad():
        attended = state.hidden + block.attention(block.first_norm(state.hidden))
        read = torch.relu(block.up_proj(block.second_norm(attended)))
        inputs, stream = given_to(block, call(), state, "down_proj", "second_norm")
        assert stream is not None
        assert inputs is not None
        assert torch.equal(inputs, read)
        assert torch.equal(stream, attended)
        _, stream = given_to(block, call(), state, "o_proj", BLOCK_INPUT)
        assert stream is state.hidden
        inputs, stream = given_to(block, call(), state, "up_proj", None)
        assert inputs is not None
        assert stream is None


@pytest.mark.parametrize("order", ["parallel", "in turn", "sandwich"])
def test_sums_of_something_else_are_none(order: str) -> None:
    """What the two halves put out together, or a norm of it, is added."""
    torch.manual_seed(0)
    found, _ = bases(Block(order), torch.randn(2, 3, WIDTH))
    assert found == {}


def test_a_post_norm_block_gives_no_wrong_base() -> None:
    """The first half adds to the block's input; what the second adds to has been through a norm."""
    torch.manual_seed(0)
    found, _ = bases(Block("post"), torch.randn(2, 3, WIDTH))
    assert found == {"o_proj": BLOCK_INPUT}


@pytest.mark.parametrize("small", [0.0, 1e-6])
@pytest.mark.parametrize("linear", ["o_proj", "down_proj"])
def test_a_linear_that_changes_nothing_has_no_base(linear: str, small: float) -> None:
    """The stream plus what it puts out, in bfloat16, is the stream: which one cannot be seen."""
    torch.manual_seed(0)
    block, hidden = Block("pre").to(torch.bfloat16), torch.randn(2, 3, WIDTH) + 3
    for parameter in block.get_submodule(linear).parameters():
        parameter.data.mul_(small)
    found, _ = bases(block, hidden.to(torch.bfloat16))
    other = {"o_proj": ("down_proj", BLOCK_INPUT), "down_proj": ("o_proj", BLOCK_INPUT)}[linear]
    assert found == dict([other])


def test_nothing_is_traced_afterwards() -> None:
    block, hidden = Block("pre"), torch.randn(2, 3, WIDTH)
    with torch.no_grad(), traced(block, hidden) as trace:
        pass
    block(hidden)
    assert trace.given == {}
    assert not any(module._forward_hooks for module in block.modules())
