"""Which tokens reach which expert, and the inputs of an expert's linears."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from armor.calibrate.stream import Stop
from armor.errors import ArmorError
from armor.models.expert import ArrangedExperts, Experts
from armor.models.routed import Routed


def keep_choice(block: nn.Module, routed: Routed) -> None:
    """Let the layer, where it is `Experts`, keep the choice that it is called with, before it runs:
    its ``choice``."""

    def keep(experts: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(experts, Experts)
        experts.choice = experts.choice_of(*args, **named)

    layer = block.get_submodule(routed.path)
    if isinstance(layer, Experts):
        layer.register_forward_pre_hook(keep, with_kwargs=True)


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
        For each expert the numbers of its tokens, int64, counted through the flattened batch; of
        `ArrangedExperts`, that of its rows among those of all experts.

    Raises:
        ArmorError: the experts get something else than rows of `inputs`.
    """
    layer = block.get_submodule(routed.path)
    if isinstance(layer, Experts):
        return [layer.rows_of(number, layer.choice) for number in range(routed.count)]
    tokens = inputs.shape[:-1].numel()
    numbers = torch.zeros_like(inputs)
    numbers[..., 0] = torch.arange(tokens, dtype=torch.int64, device=inputs.device).view(
        inputs.shape[:-1]
    )
    with torch.no_grad():
        with _idle(block, routed, inputs) as given, noting_way(block, routed) as answers:
            layer(inputs)
        with _idle(block, routed, inputs) as counted, _answering(block, routed, answers):
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


def rows_in_use(block: nn.Module, routed: Routed, inputs: Tensor) -> Bool[Tensor, " rows"]:
    """Which rows of the flattened `inputs` of a layer are a token as an expert may see it.

    Every one; but of `ArrangedExperts` only those that are sent somewhere.
    """
    layer = block.get_submodule(routed.path)
    if isinstance(layer, ArrangedExperts):
        return layer.choice.flatten()
    return torch.ones(inputs.shape[:-1].numel(), dtype=torch.bool, device=inputs.device)


def token_count(block: nn.Module, routed: Routed, inputs: Tensor) -> int:
    """The tokens in the `inputs` of a layer."""
    rows = inputs.shape[:-1].numel()
    arranged = isinstance(block.get_submodule(routed.path), ArrangedExperts)
    return rows // routed.count if arranged else rows


@contextmanager
def noting_way(block: nn.Module, routed: Routed) -> Iterator[list[Any]]:
    """While active, what the router answers is noted."""
    answers: list[Any] = []

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        answers.append(output)

    with _hooked(block.get_submodule(routed.router), note):
        yield answers


@contextmanager
def taking_way(block: nn.Module, routed: Routed, answers: list[Any]) -> Iterator[None]:
    """While active, the router answers as was noted, where the experts' input depends on that.

    That of `ArrangedExperts` does: a token has a row that is not 0 where it is sent.
    """
    arranged = isinstance(block.get_submodule(routed.path), ArrangedExperts)
    with _answering(block, routed, answers) if arranged else nullcontext():
        yield


def add_other_tokens(
    rows: Int64[Tensor, " own"], in_use: Bool[Tensor, " tokens"], extra: int
) -> Int64[Tensor, " more"]:
    """`rows` and `extra` (or all) of the others that are in use, evenly spaced."""
    others = in_use.clone()
    others[rows] = False
    others_at = others.nonzero().squeeze(-1)
    count = min(extra, len(others_at))
    if not count:
        return rows
    places = torch.arange(count, dtype=torch.int64, device=rows.device) * len(others_at) // count
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
def _answering(block: nn.Module, routed: Routed, answers: list[Any]) -> Iterator[None]:
    """While active, the router answers as was noted."""

    def answer(_module: nn.Module, _args: Any, _output: Any) -> Any:
        return answers[0]

    with _hooked(block.get_submodule(routed.router), answer):
        yield


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
