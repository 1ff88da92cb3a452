"""Tied weights: two names of one parameter, asked of what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from armor.checkpoint.tensorfile import StoredTensor
from armor.models.folder import ModelFolder
from armor.models.modules import get_tensor, put_tensor
from armor.models.renaming import find_stored


def untie_own_weights(model: Any, folder: ModelFolder) -> None:
    """Separate weights that `model` ties although different ones are stored, in place.

    transformers 5 keeps such weights apart; transformers 4 ties them whatever is stored.

    Args:
        model: empty. folder: its files.
    """
    import transformers

    groups = tied_names(model)
    if not groups or transformers.__version__.partition(".")[0] == "4":
        return
    stored = find_stored(model, folder.tensors)
    for first, *others in groups:
        for name in others:
            one, other = stored.get(first), stored.get(name)
            if (
                isinstance(one, StoredTensor)
                and isinstance(other, StoredTensor)
                and not same_bytes(one, other)
            ):
                put_tensor(model, name, get_tensor(model, name).detach().clone())


def redundant_copies(
    model: Any, tied: Sequence[Sequence[str]], tensors: Mapping[str, StoredTensor]
) -> list[StoredTensor]:
    """The stored tensors that repeat another one, to which `model` ties them.

    Args:
        model: empty. tied: its `tied_names`, from before any weight was loaded.
        tensors: of its files.
    """
    stored = find_stored(model, tensors) if tied else {}
    found = []
    for first, *others in tied:
        one = stored.get(first)
        for other in (stored.get(name) for name in others):
            if (
                isinstance(one, StoredTensor)
                and isinstance(other, StoredTensor)
                and one is not other
                and same_bytes(one, other)
            ):
                found.append(other)
    return found


def tied_names(model: Any) -> list[list[str]]:
    """The names of each parameter that has several, in the order of the modules."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors are equal, bit for bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(one.chunks(), other.chunks(), strict=True))
