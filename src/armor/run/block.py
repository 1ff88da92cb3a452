"""Block: one decoder block in memory twice, as it was and as it is being pruned."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from armor.calibrate.routed import keep_choice
from armor.engines.job import Tensors
from armor.models.routed import find_routed
from armor.models.streamed import StreamedModel
from armor.sparse.factors import Factors
from armor.sparse.layer import factors_of
from armor.sparse.pattern import Pattern


class Block:
    """One decoder block, float32.

    Attributes:
        index: its number. dense: as it was. pruned: with the layers that are solved in place;
            shares with `dense` all that is not pruned.
        routed: its layers of experts.
    """

    def __init__(self, index: int, model: StreamedModel, device: str) -> None:
        self.index = index
        self.dense = model.block(index, device)
        self.routed = find_routed(self.dense)
        shared = [*self.dense.parameters(), *self.dense.buffers()]
        self.pruned = copy.deepcopy(self.dense, {id(tensor): tensor for tensor in shared})
        for layer in self.routed:
            keep_choice(self.pruned, layer)
        self._done: set[str] = set()
        self._device = device

    def replace(self, linear: str, factors: Factors) -> None:
        """Give a linear of `pruned`, by its path in the block, the weight of `factors`."""
        module = self.pruned.get_submodule(linear)
        assert isinstance(module, nn.Linear)
        weight = factors.to(self._device).cast(torch.float32).dense()
        module.weight = nn.Parameter(weight, requires_grad=False)
        self._done.add(linear)

    def replace_all(self, solved: Mapping[str, Tensors], patterns: Mapping[str, str]) -> None:
        """`replace` by solved layers, those that are not in place yet.

        Args:
            solved: stored parts of layers, by path in the block. patterns: of their cores.
        """
        for linear in solved.keys() - self._done:
            module = self.pruned.get_submodule(linear)
            assert isinstance(module, nn.Linear)
            pattern = Pattern.parse(patterns[linear])
            parts = {name: part.to(self._device) for name, part in solved[linear].items()}
            self.replace(linear, factors_of(module.in_features, parts, pattern))
