"""Which tokens reach which expert, and the inputs of an expert's linears."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from armor.calibrate.stream import Stop
from armor.errors import ArmorError
from armor.models.experts import Experts
from armor.models.routed import Routed


def keep_choice(block: nn.Module, routed: Routed) -> None:
    """Let the layer, where it is `Experts`, keep the choice that it is called with, before it runs:
    ``choice``, the experts of each token, (tokens, k)."""

    def keep(experts: nn.Module, args: tuple[Any, ...]) -> None:
        experts.choice = args[1]

    layer = block.get_submodule(routed.path)
    if isinstance(layer, Experts):
        layer.register_forward_pre_hook(keep)


def tokens_by_expert(
    block: nn.Module, routed: Routed, inputs: Float[Tensor, "... hidden"]
) -> list[Int64[Tensor, " _"]]:
    """The tokens that each expert gets when its layer gets `inputs`.

    `Experts` have seen the choice, see `keep_choice`. Another layer runs twice, its experts doing
    nothing: on `inputs`, and on the numbers of the tokens with the router's answers as they were.
    So it does not matter how it hands tokens on.

    Args:
        inputs: (batch, seq, hidden), or (tokens, hidden) of `Experts`.

    Returns:
        For each expert the numbers of its tokens, int64, counted through the flattened batch.

    Raises:
        ArmorError: the experts get something else than rows of `inputs`.
    """
    layer = block.get_submodule(routed.path)
    if isinstance(layer, Experts):
        return [torch.where(layer.choice == number)[0] for number in range(routed.count)]
    router = block.get_submodule(routed.router)
    tokens = inputs.shape[:-1].numel()
    answers: list[Any] = []

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        answers.append(output)

    def answer(_module: nn.Module, _args: Any, _output: Any) -> Any:
        return answers[0]

    numbers = torch.zeros_like(inputs)
    numbers[..., 0] = torch.arange(tokens, device=inputs.device).view(inputs.shape[:-1])
    with torch.no_grad():
        with _idle(block, routed, inputs) as given, _hooked(router, note):
            layer(inputs)
        with _idle(block, routed, inputs) as counted, _hooked(router, answer):
            layer(numbers)
    flat = inputs.reshape(tokens, -1)
    rows = [seen[:, 0].long() for seen in counted]
    for seen, chosen in zip(given, rows, strict=True):
        if not torch.equal(seen, flat[chosen]):
            raise ArmorError(
                f"the experts of {type(layer).__name__} do not get rows of its input: leave them"
                " dense with --exclude '*experts*'"
            )
    return rows


def add_other_tokens(
    rows: Int64[Tensor, " own"], tokens: int, extra: int
) -> Int64[Tensor, " more"]:
    """`rows` and `extra` (or all) of the other tokens, evenly spaced."""
    others = torch.ones(tokens, dtype=torch.bool, device=rows.device)
    others[rows] = False
    others_at = others.nonzero().squeeze(-1)
    count = min(extra, len(others_at))
    if not count:
        return rows
    places = torch.arange(count, device=rows.device) * len(others_at) // count
    return torch.cat([rows, others_at[places]])


def linear_input(
    expert: nn.Module, linear: str, inputs: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, "tokens in"]:
    """The input of `linear` inside `expert`, given the expert's inputs (tokens, hidden)."""
    seen: list[Tensor] = []

    def capture(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise Stop

    handle = expert.get_submodule(linear).register_forward_pre_hook(capture)
    try:
        with suppress(Stop), torch.no_grad():
            expert(inputs)
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def _idle(block: nn.Module, routed: Routed, inputs: Tensor) -> Iterator[list[Tensor]]:
    """While active, experts do nothing but note their inputs, (tokens, hidden) each."""
    noted: list[Tensor] = [inputs.new_empty(0, inputs.shape[-1])] * routed.count
    experts = [block.get_submodule(routed.expert(number)) for number in range(routed.count)]

    def stand_in(number: int) -> Callable[..., Tensor]:
        def forward(x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
            noted[number] = x.reshape(-1, x.shape[-1])
            return torch.zeros_like(x)

        return forward

    with ExitStack() as undo:
        for number, expert in enumerate(experts):
            expert.forward = stand_in(number)
            undo.callback(delattr, expert, "forward")  # uncovers the class's own
        yield noted


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
