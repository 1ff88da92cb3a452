"""unusual_uses: which layers the model's own code does not just call, found before it is loaded.

One block of each kind runs on a few tokens, all weights zero: it is its code that counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from armor.calibrate.reads import never_called, weights_read
from armor.calibrate.stream import open_stream
from armor.models.streamed import StreamedModel

_TOKENS = 8


def unusual_uses(model: StreamedModel) -> dict[str, str]:
    """The linears in the decoder blocks that cannot be pruned for how they are used, and why.

    By name in the checkpoint: those of `weights_read`, and those of `never_called`.
    """
    structure = model.structure
    found: dict[str, str] = {}
    outside = [m for name, m in model.model.named_modules() if not _is_in_block(name, model)]
    tokens = torch.arange(_TOKENS, dtype=torch.int64, device="cpu")[None]
    kinds: dict[Any, dict[str, str]] = {}
    # What cannot run on zeros is left to the run itself, which says what is wrong with it.
    with suppress(Exception), _zeros(outside), _zeros(structure.blocks[0].modules()):
        ((hidden, calls),) = open_stream(model.model, structure, [tokens])
        for index, block in enumerate(structure.blocks):
            kind = _kind(block)
            if kind not in kinds:
                kinds[kind] = {}
                with suppress(Exception), _zeros(block.modules()):
                    idle = never_called(block, calls[index], hidden)
                    kinds[kind] = dict.fromkeys(idle, "text does not reach it")
                    read = weights_read(block, calls[index], hidden)
                    kinds[kind] |= dict.fromkeys(read, "the model reads its weight")
            prefix = f"{structure.prefix}.{index}"
            found |= {model.layout.name(f"{prefix}.{p}"): why for p, why in kinds[kind].items()}
    return found


def _is_in_block(name: str, model: StreamedModel) -> bool:
    return name.startswith(f"{model.structure.prefix}.")


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """What tells blocks with other code or other layers apart."""
    modules = tuple((name, type(module)) for name, module in block.named_modules())
    return modules, tuple(tuple(p.shape) for p in block.parameters())


@contextmanager
def _zeros(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While active, parameters on the meta device are zeros, all one number in memory."""
    empty = [
        (module._parameters, name, parameter)
        for module in modules
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.is_meta
    ]
    made: dict[int, nn.Parameter] = {}  # tied ones stay so
    try:
        for holder, name, parameter in empty:
            if id(parameter) not in made:
                zero = torch.zeros((), dtype=parameter.dtype, device="cpu")
                made[id(parameter)] = nn.Parameter(zero.expand(parameter.shape), False)
            holder[name] = made[id(parameter)]
        yield
    finally:
        for holder, name, parameter in empty:
            holder[name] = parameter
