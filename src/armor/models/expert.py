"""Expert, Experts: what stands in the place of fused experts, called as these are."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from armor.checkpoint.stacked import Stacking

#: From the outputs of the gate and of the up projection to the input of the down projection.
Gating = Callable[[Tensor, Tensor], Tensor]


class Expert(nn.Module):
    """``down(gating(gate x, up x))``; `naming` gives the names of the three linears."""

    def __init__(
        self, linears: Iterable[nn.Module], gating: Gating, naming: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.naming = naming
        self.gating = gating
        for name, linear in zip(naming, linears, strict=True):
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        gate, up, down = (self.get_submodule(name) for name in self.naming)
        result: Tensor = down(self.gating(gate(x), up(x)))
        return result


class Experts(nn.ModuleList):
    """The experts of one layer, called as the fused ones of transformers 5 are.

    Attributes:
        stacking: how they lie in the fused tensors.
        choice: of the last call, see `choice_of`; only where somebody keeps it.
    """

    choice: Tensor

    def __init__(
        self, experts: Iterable[Expert], naming: tuple[str, ...], stacking: Stacking
    ) -> None:
        super().__init__(experts)
        self.naming = naming
        self.stacking = stacking

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of each token's experts.

        Args:
            hidden_states: (tokens, hidden). top_k_index: its experts, (tokens, k).
            top_k_weights: their weights, (tokens, k).
        """
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            token, slot = torch.where(top_k_index == number)
            if len(token):
                part = expert(hidden_states[token]) * top_k_weights[token, slot, None]
                total.index_add_(0, token, part.to(total.dtype))
        return total

    def choice_of(self, *args: Tensor, **named: Tensor) -> Tensor:
        """What says which rows each expert gets when the module is called so."""
        return args[1]

    def rows_of(self, number: int, choice: Tensor) -> Tensor:
        """The rows of its input that an expert gets by a choice, int64."""
        return torch.where(choice == number)[0]


class ArrangedExperts(Experts):
    """Experts that are called as those of Llama 4: every expert is given a row for every token.

    The rows of an expert are the tokens times their scores, which are 0 for all that are not sent
    to it. Without biases it makes 0 of 0, so that these need not pass it.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """(experts * tokens, hidden), expert by expert -> the same."""
        result = torch.zeros_like(hidden_states)
        choice = self.choice_of(hidden_states)
        for number, expert in enumerate(self):
            rows = self.rows_of(number, choice)
            if len(rows):
                result[rows] = expert(hidden_states[rows]).to(result.dtype)
        return result

    def choice_of(self, *args: Tensor, **named: Tensor) -> Tensor:
        """Whether a row is not 0, (experts, tokens)."""
        return args[0].any(-1).view(len(self), -1)

    def rows_of(self, number: int, choice: Tensor) -> Tensor:
        """As in `Experts`."""
        return choice[number].nonzero().squeeze(-1) + number * choice.shape[1]


class ScoredExperts(Experts):
    """Experts that are called as those of gpt-oss in transformers 4.

    By name, with the weights of all experts for each token, of which those that are not chosen are
    0, and with the tokens of several windows.
    """

    def forward(
        self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor
    ) -> Tensor:
        """(batch, seq, hidden), (tokens, k), (tokens, experts) -> (batch, seq, hidden)."""
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights = routing_weights.gather(1, router_indices)
        return super().forward(flat, router_indices, weights).view(hidden_states.shape)

    def choice_of(self, *args: Tensor, **named: Tensor) -> Tensor:
        """As in `Experts`."""
        return named["router_indices"] if "router_indices" in named else args[1]
