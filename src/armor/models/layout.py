"""Layout: a model's linears as modules, and where each of its tensors is in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from armor.checkpoint.joined import Joined, in_parts
from armor.checkpoint.tensorfile import StoredTensor
from armor.models.cuts import find_cuts
from armor.models.decoder import decoder_config
from armor.models.expert import Experts
from armor.models.expert_forms import FUSED
from armor.models.experts import is_expert, split_experts
from armor.models.fused import fused_linears, split_linear
from armor.models.renaming import ConvertedTensor, find_stored, tensor_paths
from armor.models.structure import Structure, find_structure
from armor.models.transposed import TransposedTensor, make_plain

#: Whether to split a fused linear, by the shapes (out, in) of its parts.
SplitRule = Callable[[Sequence[tuple[int, int]]], bool]


def split_nothing(parts: Sequence[tuple[int, int]]) -> bool:
    """Leave every fused linear whole."""
    return False


@dataclass(frozen=True)
class Layout:
    """What `lay_out` found.

    Attributes:
        structure: the decoder.
        tensors: the checkpoint's tensors, by the names they have in the model; those that it does
            not have as they are, by their own.
        joined: tensors of the checkpoint that the model has in parts, by their own names.
        names: for layers that the checkpoint calls otherwise than the model: model -> checkpoint.
        transposed: layers with a weight that is stored as (in, out), by their names there.
    """

    structure: Structure
    tensors: dict[str, StoredTensor]
    joined: dict[str, Joined] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()

    def name(self, path: str) -> str:
        """What the checkpoint calls the layer at `path` of the model."""
        return self.names.get(path, path)

    def path(self, name: str) -> str:
        """The inverse of `name`."""
        return self._paths.get(name, name)

    def joined_with(self, layers: Iterable[str]) -> dict[str, Joined]:
        """Those of `joined` that a checkpoint has in parts in which these layers are pruned.

        Experts that all stay dense are not taken apart: transformers then reads them as they are.
        """
        if any(map(is_expert, layers)):
            return self.joined
        return {
            tensor: whole
            for tensor, whole in self.joined.items()
            if not any(map(is_expert, whole.parts))
        }

    @cached_property
    def _paths(self) -> dict[str, str]:
        return {name: path for path, name in self.names.items()}


def lay_out(
    model: Any,
    tensors: Mapping[str, StoredTensor],
    should_split: SplitRule = split_nothing,
    described: Mapping[str, Any] | None = None,
) -> Layout:
    """Give every matrix of `model` a linear of its own, in place, and find it in the checkpoint.

    Experts that transformers fuses become modules, and so do the parts of fused projections where
    `should_split` says so.

    Args:
        model: a causal language model, its parameters also on the meta device.
        tensors: what its checkpoint holds, see `armor.checkpoint.weights.read_weights`.
        described: see `find_structure`.

    Raises:
        ArmorError: see `find_structure`.
    """
    paths = tensor_paths(model, tensors)
    experts = split_experts(model, tensors, _converted(model, tensors))
    plain = {f"{name}.weight" for name in make_plain(model)}
    structure = find_structure(model, described)
    joined = find_cuts(model, tensors)
    for name, stored in tensors.items():
        path = paths[name]
        owner, _, leaf = path.rpartition(".")
        if owner in experts and leaf in FUSED:  # one 3-D tensor on the disk, too
            # Other names on the disk, such as GraniteMoE's: then those of the model.
            stem = name.removesuffix(leaf) if name.endswith(f".{leaf}") else f"{owner}."
            joined[name] = _joined_experts(model.get_submodule(owner), leaf, stored.shape, stem)
    parents = {path: name for name, path in paths.items()}
    for index, block in enumerate(structure.blocks):
        for inside, rows in list(fused_linears(block, decoder_config(model.config, index))):
            path = f"{structure.prefix}.{index}.{inside}"
            tensor = parents.get(f"{path}.weight")
            if tensor is None or f"{path}.weight" in plain:
                continue
            shape = tensors[tensor].shape
            if should_split([(count, shape[-1]) for count in rows]):
                split_linear(model, path, rows)
                stem = tensor.removesuffix(".weight")
                parts = {f"{stem}.{number}": count for number, count in enumerate(rows)}
                joined[tensor] = Joined(shape, parts)
    found = {
        name: TransposedTensor.of(stored) if paths.get(name) in plain else stored
        for name, stored in in_parts(tensors, joined).items()
    }
    paths = tensor_paths(model, found)
    names = {
        path.removesuffix(".weight"): name.removesuffix(".weight") for name, path in paths.items()
    }
    held = model.state_dict()
    return Layout(
        structure,
        {paths[name] if paths[name] in held else name: stored for name, stored in found.items()},
        joined,
        {path: name for path, name in names.items() if path != name},
        frozenset(
            n.removesuffix(".weight") for n, t in found.items() if type(t) is TransposedTensor
        ),
    )


def _converted(model: Any, tensors: Mapping[str, StoredTensor]) -> set[str]:
    """The modules with a weight that is one tensor on the disk, too, but in another form."""
    return {
        name.rpartition(".")[0]
        for name, stored in find_stored(model, tensors).items()
        if isinstance(stored, ConvertedTensor) and len(stored.parts) == 1
    }


def _joined_experts(experts: Any, leaf: str, shape: tuple[int, ...], stem: str) -> Joined:
    """The parts of a tensor of experts, expert by expert, with their rows."""
    assert isinstance(experts, Experts)
    gate, up, down = experts.naming
    stacking = experts.stacking
    linears = [gate, up]
    if leaf.startswith("down_proj"):
        linears, stacking = [down], replace(stacking, interleaved=False)
    bias = leaf.endswith("_bias")
    if bias:
        stacking = replace(stacking, transposed=False)
    whole = Joined(shape, {}, stacking, bias)
    rows = whole.rows // (len(experts) * len(linears))
    names = (f"{stem}{number}.{name}" for number in range(len(experts)) for name in linears)
    return replace(whole, parts=dict.fromkeys(names, rows))
