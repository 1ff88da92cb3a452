"""From the tensors of a checkpoint to those of a model, by transformers' own rules.

Most names are the same. transformers 5 has names of its own for a few models, whose checkpoints it
still writes with the old ones (Mixtral's ``block_sparse_moe`` is ``mlp``), and makes some
parameters of several stored tensors (fused experts). transformers 4 only renames, for models of
images and text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from armor.checkpoint.tensorfile import StoredTensor


@dataclass(frozen=True)
class ConvertedTensor:
    """A parameter that transformers computes from several stored tensors, such as fused experts.

    Attributes:
        name: the parameter's, or that of the first one made of these tensors.
        made: the parameter's own, where several are made.
        parts: for each stored tensor its name there, the pattern of transformers' that it matches,
            and where it is.
    """

    name: str
    parts: tuple[tuple[str, str, StoredTensor], ...]
    converter: Any
    model: Any
    made: str = ""

    @property
    def dtype(self) -> str:
        """Of the stored tensors, the file's own name for it."""
        return self.parts[0][2].dtype

    def load(self) -> Tensor:
        """The parameter, in memory."""
        return self.convert(StoredTensor.load)[self.made or self.name]

    def names(self) -> list[str]:
        """Of all parameters that are made of these tensors."""
        return list(
            self.convert(
                lambda stored: torch.empty(stored.shape, dtype=torch.float32, device="meta")
            )
        )

    def convert(self, load: Callable[[StoredTensor], Tensor]) -> dict[str, Tensor]:
        """All that is made of what `load` gives for the stored tensors, by name."""
        converter = copy.deepcopy(self.converter)
        for original, pattern, stored in self.parts:
            converter.add_tensor(self.name, original, pattern, load(stored))
        made = converter.convert(self.name, model=self.model, config=self.model.config)
        return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}

    def prefetch(self) -> None:
        """Ask the system to read the stored tensors in the background."""
        for _, _, stored in self.parts:
            stored.prefetch()


def find_stored(
    model: Any, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor | ConvertedTensor]:
    """For each of the model's tensors that is stored: where, or what it is made of."""
    held = model.state_dict()
    _, converters = _rules(model)
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    locate = _locator(model)
    found: dict[str, StoredTensor | ConvertedTensor] = {}
    fused: dict[str, list[tuple[str, str, StoredTensor]]] = {}
    for original, stored in tensors.items():
        name, pattern = locate(original)
        if name in held and pattern is not None:
            fused.setdefault(name, []).append((original, pattern, stored))
        elif name in held:
            found[name] = stored
    for name, parts in fused.items():
        whole = ConvertedTensor(name, tuple(parts), by_pattern[parts[0][1]], model)
        # One stored tensor may make several of the model's.
        several = len(whole.converter.target_patterns) > 1
        for made in whole.names() if several else (name,):
            found[made] = replace(whole, made=made)
    return found


def _locator(model: Any) -> Callable[[str], tuple[str, str | None]]:
    """From a stored tensor to the model's name for it, and the pattern of its converter, if any."""
    held = model.state_dict()
    base = model.base_model_prefix
    renamings, converters = _rules(model)

    def locate(original: str) -> tuple[str, str | None]:
        names = (original, f"{base}.{original}", original.removeprefix(f"{base}."))
        direct = next((name for name in names if name in held), None)
        if direct is not None:
            return direct, None
        try:
            from transformers.core_model_loading import rename_source_key
        except ImportError:
            return _renamed_by_version_4(model, original), None
        renamed: tuple[str, str | None] = rename_source_key(
            original, renamings, converters, base, held
        )
        return renamed

    return locate


def tensor_paths(model: Any, names: Iterable[str]) -> dict[str, str]:
    """By its name in the checkpoint: what each tensor is called in `model`.

    As `tensor_renaming` says, but where the model lacks that and has the tensor under another
    prefix, as a part of a larger model has.
    """
    held = model.state_dict()
    rename, locate = tensor_renaming(model), _locator(model)
    paths = {}
    for name in names:
        path = rename(name)
        located, pattern = (path, None) if path in held else locate(name)
        paths[name] = located if located in held and pattern is None else path
    return paths


def tensor_renaming(model: Any) -> Callable[[str], str]:
    """From the name of a tensor in the checkpoint to the one it has in `model`, where both have it
    as one tensor."""
    renamings, _ = _rules(model, add_legacy=False)

    def renamed(name: str) -> str:
        for rule in renamings:
            name, _ = rule.rename_source_key(name)
        return _renamed_by_version_4(model, name)

    return renamed


def _renamed_by_version_4(model: Any, name: str) -> str:
    """By the patterns that a class of transformers 4 has itself; the first that matches counts."""
    patterns: Mapping[str, str] = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    for pattern, replacement in patterns.items():
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def layer_renaming(model: Any) -> Callable[[str], str]:
    """`tensor_renaming` for the names of layers."""
    rename = tensor_renaming(model)
    return lambda name: rename(f"{name}.weight").removesuffix(".weight")


def fuses_any_experts(model: Any) -> bool:
    """Whether transformers would merge the experts of a checkpoint of `model` when it loads it."""
    return any(map(fuses_experts, _rules(model)[1]))


def fuses_experts(conversion: Any) -> bool:
    """Whether a conversion of transformers 5 merges the experts of a checkpoint into one tensor."""
    targets = getattr(conversion, "target_patterns", ())
    return hasattr(conversion, "operations") and any("experts" in target for target in targets)


def _rules(model: Any, **options: bool) -> tuple[list[Any], list[Any]]:
    """transformers' rules for `model`, those that rename and those that convert; [] before 5.

    Args:
        options: ``add_legacy``: also those for checkpoints of very old versions (the default).
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming
    except ImportError:
        return [], []
    rules = get_model_conversion_mapping(model, **options)
    return (
        [rule for rule in rules if isinstance(rule, WeightRenaming)],
        [rule for rule in rules if isinstance(rule, WeightConverter)],
    )
