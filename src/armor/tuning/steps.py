"""Steps: Adam, each tensor moved by a share of its own size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

#: Of the steps the first so many grow; from there on they shrink with a cosine, to nothing.
_WARM_UP = 10
_BETAS = 0.9, 0.95


class Steps:
    """The optimiser of a run of `total` steps.

    The parts of a factorisation differ in size by orders of magnitude (A and B near the identity, S
    near the weights): a step of `size` moves every tensor by that share of its root mean square as
    it was in the beginning.

    Args:
        trained: by name, as they are in the beginning. size: largest step.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], size: float, total: int) -> None:
        self._names = list(trained)
        self._total = total
        groups = [
            {"params": [parameter], "size": size * _root_mean_square(parameter)}
            for parameter in trained.values()
        ]
        self._adam = torch.optim.Adam(groups, lr=0.0, betas=_BETAS, fused=True)

    def take(self, number: int) -> None:
        """Step `number`, from 0 on, along the gradients, which it drops."""
        warm = min(1.0, (number + 1) / min(_WARM_UP, self._total))
        share = warm * 0.5 * (1.0 + math.cos(math.pi * number / self._total))
        for group in self._adam.param_groups:
            group["lr"] = share * group["size"]
        self._adam.step()
        self._adam.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """What a run that goes on needs of it, by name."""
        states = self._adam.state_dict()["state"]
        return {
            f"{key}/{self._names[number]}": value
            for number, state in states.items()
            for key, value in state.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        whole = self._adam.state_dict()
        numbers = {name: number for number, name in enumerate(self._names)}
        for key, value in state.items():
            part, _, name = key.partition("/")
            whole["state"].setdefault(numbers[name], {})[part] = value
        self._adam.load_state_dict(whole)


def _root_mean_square(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def order(count: int, together: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Which windows, or batches of them, each step sees: every one once, in another order each time
    round.

    Args:
        count: of all. together: of a step.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    left: list[int] = []
    for _ in range(steps):
        chosen: list[int] = []
        while len(chosen) < together:
            if not left:
                drawn = torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")
                left = drawn.tolist()
            chosen.append(left.pop())
        yield chosen
