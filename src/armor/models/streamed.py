"""StreamedModel: a model that stays on the disk, of which one block at a time is in memory."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from armor.checkpoint.files import ModelFiles
from armor.checkpoint.tensorfile import DTYPES, StoredTensor
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.layout import SplitRule, lay_out, split_nothing
from armor.models.load import empty_model
from armor.models.modules import get_tensor, module_name, put_tensor
from armor.models.renaming import ConvertedTensor, find_stored
from armor.models.tied import redundant_copies, tied_names


class StreamedModel:
    """The modules of a model on the meta device, and where its tensors are stored.

    Attributes:
        folder: where the model was read from.
        model: the empty model, float32, its experts (and the parts of fused projections, where
            `should_split` says so) as linears of their own. structure: its decoder. layout: its
            names in the files.
        stored: for each parameter and saved buffer of the model, the tensor in its file, or those
            that it is made of.
        tied: whether the output head shares its weight with the embeddings.

    Raises:
        ArmorError: a model that cannot be built, or tensors that are missing or have another shape.
    """

    def __init__(
        self,
        folder: ModelFolder,
        should_split: SplitRule = split_nothing,
        described: Mapping[str, Any] | None = None,
    ) -> None:
        """Args: folder: of the model. should_split, described: see `lay_out`."""
        self.folder = folder
        self.model = empty_model(folder)
        head, embeddings = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        # Asked now: weights that come and go are no longer one and the same. (A head of its own is
        # separate by now, whatever config.json says.)
        self.tied = head is not None and head.weight is embeddings.weight
        self._tied_names = tied_names(self.model)
        self.layout = lay_out(self.model, folder.tensors, should_split, described)
        self.structure = self.layout.structure
        self.stored, self._aliases = _match(self.model, self.layout.tensors, folder.path)

    @property
    def files(self) -> ModelFiles:
        """The folder's files as a copy of the model needs them.

        A second copy of a tied weight is left out, and where the head is one of its own although
        config.json ties it, the config says so.
        """
        files = self.folder.files
        copies = redundant_copies(self.model, self._tied_names, self.layout.tensors)
        tensors = {
            name: stored
            for name, stored in files.tensors.items()
            if not any(stored is copy for copy in copies)
        }
        config = files.config
        own_head = self.head is not None and not self.tied
        if own_head and _ties_by_config(self.folder.config):
            config = _untied(config)
        return ModelFiles(files.path, config, tensors)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which a tensor is stored."""
        return DTYPES[self.stored[name].dtype]

    def load(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """One tensor of the model on `device`: float32, or as it is stored if of integers."""
        tensor = self.stored[name].load().to(device)  # before it is made wider
        return tensor.float() if tensor.is_floating_point() else tensor

    def block(self, index: int, device: torch.device | str = "cpu") -> nn.Module:
        """A copy of decoder block `index` with its weights on `device`, see `load`."""
        block = copy.deepcopy(self.structure.blocks[index])
        prefix = f"{self.structure.prefix}.{index}."
        for name in self._names(prefix):
            put_tensor(block, name.removeprefix(prefix), self.load(name, device))
        return block.to(device)

    def prefetch(self, index: int) -> None:
        """Ask the system to read block `index` into its cache, if there is such a block."""
        for name in self._names(f"{self.structure.prefix}.{index}."):
            self.stored[name].prefetch()

    @property
    def head(self) -> str | None:
        """The name of the output head, a linear; None if the model has none."""
        return module_name(self.model, self.model.get_output_embeddings())

    @property
    def embeddings(self) -> str | None:
        """The name of the token embeddings."""
        return module_name(self.model, self.model.get_input_embeddings())

    def names_outside_blocks(self) -> list[str]:
        """The tensors of all but the decoder blocks and the token embeddings."""
        inside = f"{self.structure.prefix}.", f"{self.embeddings}."
        return [name for name in self.stored if not name.startswith(inside)]

    @contextmanager
    def loaded(self, names: Iterable[str]) -> Iterator[None]:
        """While active, these tensors of the model are in memory."""
        empty = {name: get_tensor(self.model, name) for name in names}
        try:
            for name in empty:
                tensor = self.load(name)
                for alias in (name, *self._aliases.get(name, ())):
                    put_tensor(self.model, alias, tensor)
            yield
        finally:
            for name, tensor in empty.items():
                for alias in (name, *self._aliases.get(name, ())):
                    put_tensor(self.model, alias, tensor)

    @contextmanager
    def first_block_loaded(self) -> Iterator[None]:
        """While active, block 0 and all that may run before it has its weights."""
        first, blocks = f"{self.structure.prefix}.0.", f"{self.structure.prefix}."
        names = [
            name
            for name in self.stored
            if name.startswith(first) or not (name.startswith(blocks) or self.of_head_alone(name))
        ]
        with self.loaded(names):
            yield

    def of_head_alone(self, name: str) -> bool:
        """Whether a tensor is the output head's, and not shared with the embeddings."""
        return name.rpartition(".")[0] == self.head and name not in self._aliases

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self.stored if name.startswith(prefix)]


def _match(
    model: nn.Module, tensors: Mapping[str, StoredTensor], folder: Path
) -> tuple[dict[str, StoredTensor | ConvertedTensor], dict[str, list[str]]]:
    """Where each parameter and saved buffer of `model` is stored, by its (first) name; and the
    other names of those that have several."""
    optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    names: dict[int, list[str]] = {}  # tied tensors have several
    held = model.state_dict(keep_vars=True)
    for name, tensor in held.items():
        names.setdefault(id(tensor), []).append(name)
    known = find_stored(model, tensors)
    found: dict[str, StoredTensor | ConvertedTensor] = {}
    missing, wrong = [], []
    for first, *others in names.values():
        stored = next((known[name] for name in (first, *others) if name in known), None)
        if stored is None:
            if isinstance(held[first], nn.Parameter) and not _matches(first, optional):
                missing.append(first)
        elif isinstance(stored, StoredTensor) and stored.shape != tuple(held[first].shape):
            wrong.append(first)
        else:
            found[first] = stored
    for bad, fault in ((missing, "lacks"), (wrong, "has the wrong shape for")):
        if bad:
            raise ArmorError(
                f"{folder} {fault} {len(bad)} of the model's tensors, the first {min(bad)};"
                " download or write the checkpoint again"
            )
    return found, {first: others for first, *others in names.values() if others}


def _untied(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of a model whose output head is not tied, though `config` says or implies so."""
    changed = dict(config, tie_word_embeddings=False)
    if isinstance(inner := config.get("text_config"), dict):
        changed["text_config"] = dict(inner, tie_word_embeddings=False)
    return changed


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _ties_by_config(config: Any) -> bool:
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
