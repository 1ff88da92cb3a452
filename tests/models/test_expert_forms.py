"""How fused experts keep their weights and are called: found, tried, and computed the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

from armor.models.expert import ArrangedExperts
from armor.models.expert_forms import form_of
from armor.models.experts import put_together

pytestmark = pytest.mark.transformers_compat
COUNT, HIDDEN, INNER, TOKENS = 4, 8, 6, 7
NAMES = ("gate", "up", "down")


def filled(experts: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        parameter.data = 2 * torch.randn(parameter.shape, generator=generator)
    return experts.double().requires_grad_(False)


def gpt_oss() -> Any:
    config = transformers.GptOssConfig(
        num_local_experts=COUNT, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=1
    )
    if transformers.__version__ >= "5":
        config._experts_implementation = "eager"
    return filled(GptOssExperts(config))


def llama4() -> Any:
    config = transformers.Llama4TextConfig(
        num_local_experts=COUNT, hidden_size=HIDDEN, intermediate_size=INNER
    )
    return filled(Llama4TextExperts(config))


def choice() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens; the experts of each; the weights of these."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, HIDDEN, generator=generator).double()
    weights, chosen = torch.rand(TOKENS, COUNT, generator=generator).double().topk(2)
    return x, chosen, weights


def test_gpt_oss() -> None:
    fused = gpt_oss()
    form = form_of(fused)
    assert form is not None
    assert form.stacking.transposed
    assert form.stacking.interleaved
    split = form.split(fused, NAMES)
    assert torch.equal(split[1].gate.weight, fused.gate_up_proj[1].T[::2])
    assert torch.equal(split[1].up.bias, fused.gate_up_proj_bias[1, 1::2])
    assert torch.equal(split[2].down.weight, fused.down_proj[2].T)
    assert torch.equal(split[2].down.bias, fused.down_proj_bias[2])
    x, chosen, weights = choice()
    named = {"router_indices": chosen, "routing_weights": weights}
    if transformers.__version__ < "5":
        named["routing_weights"] = torch.zeros(TOKENS, COUNT).double().scatter(1, chosen, weights)
        expected = fused(x[None], **named)
        found = split(x[None], **named)
        assert split.choice_of(x[None], **named) is chosen
    else:
        expected, found = fused(x, chosen, weights), split(x, chosen, weights)
        assert split.choice_of(x, chosen, weights) is chosen
    torch.testing.assert_close(found, expected)
    assert (fused.gate_up_proj.abs() > 2).any()  # some values are clamped


def test_llama4() -> None:
    fused = llama4()
    form = form_of(fused)
    assert form is not None
    assert form.kind is ArrangedExperts
    split = form.split(fused, NAMES)
    x, chosen, weights = choice()
    scores = torch.zeros(TOKENS, COUNT).double().scatter(1, chosen, weights)
    rows = (x * scores.T[..., None]).reshape(-1, HIDDEN)
    calls: list[int] = []
    for expert in split:
        expert.register_forward_pre_hook(lambda _module, args: calls.append(len(args[0])))
    torch.testing.assert_close(split(rows), fused(rows))
    assert calls == [int((chosen == number).sum()) for number in range(COUNT)]
    mask = split.choice_of(rows)
    for number in range(COUNT):
        at = split.rows_of(number, mask)
        assert torch.equal(at - number * TOKENS, torch.where((chosen == number).any(-1))[0])


@pytest.mark.parametrize("make", [gpt_oss, llama4])
def test_put_together_again(make: Any) -> None:
    fused, again = make(), make()
    form = form_of(fused)
    assert form is not None
    for parameter in again.parameters():
        parameter.data.zero_()
    put_together(form.split(fused, NAMES), again)
    for name, parameter in fused.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert again.get_parameter(name).is_contiguous()


class Doubled(Llama4TextExperts):
    """Of the same weights and arguments, but it computes something else."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden_states)


class Failing(Llama4TextExperts):
    """It needs something that small numbers do not have."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        raise ValueError(hidden_states.shape)


@pytest.mark.parametrize("kind", [Doubled, Failing])
def test_a_class_that_computes_something_else_is_not_known(kind: type[nn.Module]) -> None:
    fused = llama4()
    fused.__class__ = kind
    assert form_of(fused) is None


def test_other_arguments_and_weights_are_not_known() -> None:
    fused = llama4()
    fused.norm = nn.Parameter(torch.ones(3))
    assert form_of(fused) is None
    fused = llama4()
    fused.has_post_expert_norm = True
    assert form_of(fused) is None
    fused = gpt_oss()
    fused.is_transposed = False
    assert form_of(fused) is None
