"""Student: a pruned model in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.tensorfile import DTYPES
from armor.linear import armor_layers
from armor.models.modules import put_module
from armor.models.renaming import tensor_paths
from armor.models.structure import find_structure
from armor.tuning.merged import MergedLinear

_VALUES = ".core_values"


class Student:
    """A pruned model, or a block of one, float32, of which A, S, B, biases and norms are trained.

    Embeddings, the output head and linears that stayed dense are as they were; so are the masks.

    Attributes:
        model: with a `MergedLinear` in the place of each pruned layer.
        trained: what is trained, by its name in the checkpoint; the values of S, flat, by that of
            ``core_values``.
    """

    def __init__(self, model: nn.Module, names: Mapping[str, str], pruned: Checkpoint) -> None:
        """`model`, of `pruned`, is changed.

        Args:
            names: what the checkpoint calls the parameters of the model, by their names there.
        """
        self.model = model
        self.trained: dict[str, nn.Parameter] = {}
        self._layers: dict[str, MergedLinear] = {}
        model.requires_grad_(False)
        for path, layer in list(armor_layers(model)):
            name = names[path + _VALUES].removesuffix(_VALUES)
            merged = MergedLinear(layer)
            self._layers[name] = merged
            put_module(model, path, merged)
            for part, own in merged.named_parameters():
                self.trained[f"{name}.{_STORED.get(part, part)}"] = own
        for path, parameter in model.named_parameters():
            # Norms, and biases of what stayed dense.
            if path in names and parameter.dim() == 1:
                parameter.requires_grad_(True)
                self.trained[names[path]] = parameter
        self._dtypes = {name: DTYPES[pruned.tensors[name].dtype] for name in self.trained}

    @classmethod
    def of(cls, model: Any, pruned: Checkpoint) -> Student:
        """The whole of `pruned`, loaded as `model`, which is changed."""
        paths = tensor_paths(model, pruned.tensors)
        return cls(model, {path: name for name, path in paths.items()}, pruned)

    def keep_less(self) -> None:
        """From now on keep only what each block is given; the rest is computed again, with the
        same result, when gradients need it."""
        for block in find_structure(self.model).blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

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
