"""Preparing layers ahead of the first call, for backends with a form of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from armor.runtime.backend import Sharing
from armor.runtime.dispatch import forced, supports
from armor.runtime.registry import FEW_ROWS, candidates, load
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import Pattern


def prepare_layer(layer: PackedLayer) -> tuple[Tensor, str] | None:
    """What `Call` takes as `prepared` and `prepared_by`; None where the stored form is enough.

    Every backend that may run the layer prepares for it. What the first makes is held, of those to
    try with many rows (before them the one that `use` asks for).
    """
    values = layer.core_values
    wanted = forced()
    names = candidates(values.device, FEW_ROWS + 1)
    found: tuple[Tensor, str] | None = None
    for name in names if wanted is None else dict.fromkeys([wanted, *names]):
        rows = FEW_ROWS + 1
        if supports(name, *_described(layer, rows)):
            prepared = load(name).prepare(layer)
            if prepared is not None and found is None:
                found = prepared, name
    return found


def gains_from_sharing(layer: PackedLayer) -> bool:
    """Whether a backend that may run the layer computes several of the same input faster."""
    values = layer.core_values
    wanted = forced()
    return any(
        isinstance(load(name), Sharing) and supports(name, *_described(layer, 1))
        for name in (candidates(values.device, 1) if wanted is None else [wanted])
    )


def _described(
    layer: PackedLayer, rows: int
) -> tuple[tuple[int, int], torch.dtype, torch.device, int, Pattern, str | None]:
    """What `supports` asks of a layer and a call with so many rows."""
    device = layer.core_values.device
    return layer.shape, layer.dtype, device, rows, layer.pattern, layer.core
