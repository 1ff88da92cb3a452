"""Student: a pruned model in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.tensorfile import DTYPES
from armor.linear import armor_layers
from armor.models.modules import put_module
from armor.models.renaming import tensor_paths
from armor.tune.merged import MergedLinear

_VALUES = ".core_values"


class Student:
    """A pruned model, float32, of which A, S, B, biases and norms are trained.

    Embeddings, the output head and linears that stayed dense are as they were; so are the masks.

    Attributes:
        model: with a `MergedLinear` in the place of each pruned layer.
        trained: what is trained, by its name in the checkpoint; the values of S, flat, by that of
            ``core_values``.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        """Args: model: `checkpoint` loaded in float32; it is changed."""
        self.model = model
        self.trained: dict[str, nn.Parameter] = {}
        self._layers: dict[str, MergedLinear] = {}
        names = {path: name for name, path in tensor_paths(model, checkpoint.tensors).items()}
        model.requires_grad_(False)
        for path, layer in list(armor_layers(model)):
            name = names[path + _VALUES].removesuffix(_VALUES)
            merged = self._layers[name] = MergedLinear(layer)
            put_module(model, path, merged)
            for part, parameter in merged.named_parameters():
                self.trained[f"{name}.{_STORED.get(part, part)}"] = parameter
        for path, parameter in model.named_parameters():
            # Norms, and biases of what stayed dense.
            if path in names and parameter.dim() == 1:
                self.trained[names[path]] = parameter.requires_grad_()
        self._dtypes = {name: DTYPES[checkpoint.tensors[name].dtype] for name in self.trained}

    def merge(self) -> None:
        """Make the weights of the layers anew: before a step."""
        for layer in self._layers.values():
            layer.merge()

    def pull_back(self) -> None:
        """Take the gradients of the weights back to the factors: after a step."""
        for layer in self._layers.values():
            layer.pull_back()

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """While active, the model is what would be stored."""
        own = {name: p for name, p in self.trained.items() if p.dim() == 1}
        exact = {name: parameter.detach().clone() for name, parameter in own.items()}
        try:
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(parameter.to(self._dtypes[name]))
            for name, layer in self._layers.items():
                layer.merge(self._dtypes[name + _VALUES])
            yield
        finally:
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(exact[name])

    @torch.no_grad()
    def stored(self) -> dict[str, Tensor]:
        """What is trained as the checkpoint has it: by name, on the CPU, in the stored dtype."""
        found = {name: p.to("cpu", self._dtypes[name]) for name, p in self.trained.items()}
        for name, layer in self._layers.items():
            packed = layer.packed(self._dtypes[name + _VALUES])
            found[name + _VALUES] = packed.core_values.cpu()
        return found


_STORED = {"values": "core_values"}
