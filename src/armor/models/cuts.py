"""Cuts: matrices of a checkpoint that transformers 5 takes apart when it loads them.

HRM stores gate and up as one matrix, of which the model makes two linears. Each is pruned on its
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from armor.checkpoint.joined import Joined
from armor.checkpoint.tensorfile import StoredTensor
from armor.models.renaming import ConvertedTensor, find_stored

WEIGHT = ".weight"


def find_cuts(model: Any, tensors: Mapping[str, StoredTensor]) -> dict[str, Joined]:
    """The stored matrices of which the model has the rows in several linears.

    Returns:
        By their names in the checkpoint; parts have the names of the model. Matrices that are cut
        in another way than between rows are left out.
    """
    found = {}
    for converted in find_stored(model, tensors).values():
        if not isinstance(converted, ConvertedTensor) or len(converted.parts) > 1:
            continue
        original, _, stored = converted.parts[0]
        if original in found or len(stored.shape) != 2 or not converted.made:
            continue
        if (parts := _parts(converted)) is not None:
            found[original] = Joined(stored.shape, parts)
    return found


def _parts(converted: ConvertedTensor) -> dict[str, int] | None:
    """The rows that each linear takes; None unless they are consecutive ones of the matrix."""

    def numbers(stored: StoredTensor) -> Tensor:
        return torch.arange(stored.shape[0])[:, None]

    made = converted.convert(numbers)
    (stored,) = (part[2] for part in converted.parts)
    in_order = torch.equal(torch.cat(list(made.values())), numbers(stored))
    if not in_order or not all(name.endswith(WEIGHT) for name in made):
        return None
    return {name.removesuffix(WEIGHT): len(rows) for name, rows in made.items()}
