"""Which stored tensors a parameter is made of, where transformers renames or fuses them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from armor.checkpoint.tensorfile import StoredTensor


@dataclass(frozen=True)
class Converted:
    """A parameter that transformers computes from several stored tensors, such as fused experts.

    Attributes:
        name: the parameter's. parts: for each stored tensor its name there, the pattern of
            transformers' that it matches, and where it is.
    """

    name: str
    parts: tuple[tuple[str, str, StoredTensor], ...]
    converter: Any
    model: Any

    @property
    def dtype(self) -> str:
        """Of the stored tensors, the file's own name for it."""
        return self.parts[0][2].dtype

    def load(self) -> Tensor:
        """The parameter, in memory."""
        converter = copy.deepcopy(self.converter)
        for original, pattern, stored in self.parts:
            converter.add_tensor(self.name, original, pattern, stored.load())
        made = converter.convert(self.name, model=self.model, config=self.model.config)
        tensor: Tensor | list[Tensor] = made[self.name]
        return tensor[0] if isinstance(tensor, list) else tensor

    def prefetch(self) -> None:
        """Ask the system to read the stored tensors in the background."""
        for _, _, stored in self.parts:
            stored.prefetch()


def sources(model: Any, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor | Converted]:
    """For each of the model's tensors that is stored: where, or what it is made of."""
    held = model.state_dict()
    base = f"{model.base_model_prefix}."
    found: dict[str, StoredTensor | Converted] = {}
    fused: dict[str, list[tuple[str, str, StoredTensor]]] = {}
    rename = _Renaming(model)
    for original, stored in tensors.items():
        ways = (original, base + original, original.removeprefix(base))
        direct = next((way for way in ways if way in held), None)
        if direct is not None:
            found[direct] = stored
            continue
        name, pattern = rename(original, held)
        if name in held and pattern is not None:
            fused.setdefault(name, []).append((original, pattern, stored))
        elif name in held:
            found[name] = stored
    for name, parts in fused.items():
        found[name] = Converted(name, tuple(parts), rename.converters[parts[0][1]], model)
    return found


class _Renaming:
    """transformers 5's rules for the names of a checkpoint's tensors; none before."""

    def __init__(self, model: Any) -> None:
        self.converters: dict[str, Any] = {}
        self._prefix = model.base_model_prefix
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import (
                WeightConverter,
                WeightRenaming,
                rename_source_key,
            )
        except ImportError:
            self._rename = None
            return
        rules = get_model_conversion_mapping(model)
        self._rename = rename_source_key
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self.converters = {
            pattern: rule for rule in self._converters for pattern in rule.source_patterns
        }

    def __call__(self, name: str, held: Mapping[str, Any]) -> tuple[str, str | None]:
        """The model's name for a stored tensor, and the pattern of its converter, if any."""
        if self._rename is None:
            return name, None
        return self._rename(name, self._renamings, self._converters, self._prefix, held)
