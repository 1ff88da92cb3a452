"""StreamedModel: a model that stays on the disk, of which one block at a time is in memory."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from armor.calibrate.gradients import Draw, Samples, loss_gradient
from armor.calibrate.stream import input_after_blocks
from armor.checkpoint.tensorfile import DTYPES, StoredTensor
from armor.checkpoint.weights import read_weights
from armor.errors import ArmorError
from armor.models.layout import Wanted, lay_out, never
from armor.models.skeleton import empty_model
from armor.models.stored import Converted, sources


class StreamedModel:
    """The modules of a model on the meta device, and where its tensors are stored.

    Attributes:
        folder: the model's folder.
        model: the empty model, float32, its experts (and fused projections, where `wanted`) as
            linears of their own. structure: its decoder. layout: its names in the files.
        stored: for each parameter and saved buffer of the model, the tensor in its file, or those
            that it is made of.
        tensors: every tensor of the files by its name there.
        tied: whether the output head shares its weight with the embeddings.

    Raises:
        ArmorError: not a causal language model, or tensors that are missing or have another shape.
    """

    def __init__(
        self, folder: Path, wanted: Wanted = never, described: Mapping[str, Any] | None = None
    ) -> None:
        """Args: folder: of the model. wanted, described: see `lay_out`."""
        self.folder = folder
        self.model = empty_model(str(folder))
        head, embeddings = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        # Asked now: weights that come and go are no longer one and the same.
        self.tied = head is not None and head.weight is embeddings.weight
        self.tensors = read_weights(folder)
        self.layout = lay_out(self.model, self.tensors, wanted, described)
        self.structure = self.layout.structure
        self.stored = _match(self.model, self.layout.tensors, folder)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which a tensor is stored."""
        return DTYPES[self.stored[name].dtype]

    def load(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """One tensor of the model, float32."""
        return self.stored[name].load().to(device, torch.float32)

    def block(self, index: int, device: torch.device | str = "cpu") -> nn.Module:
        """A copy of decoder block `index` with its weights, float32, on `device`."""
        block = copy.deepcopy(self.structure.blocks[index])
        prefix = f"{self.structure.prefix}.{index}."
        for name in self._names(prefix):
            _set(block, name.removeprefix(prefix), self.load(name, device))
        return block.to(device)

    def prefetch(self, index: int) -> None:
        """Ask the system to read block `index` ahead, if there is one; takes no memory of ours."""
        for name in self._names(f"{self.structure.prefix}.{index}."):
            self.stored[name].prefetch()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """While active, block 0 and all that may run before it has its weights."""
        first, blocks = f"{self.structure.prefix}.0.", f"{self.structure.prefix}."
        names = [
            name
            for name in self.stored
            if name.startswith(first)
            or not (name.startswith(blocks) or name.rpartition(".")[0] == self.head)
        ]
        with self._loaded(names):
            yield

    @property
    def head(self) -> str | None:
        """The name of the output head, a linear; None if the model has none."""
        return _module_name(self.model, self.model.get_output_embeddings())

    def head_input(self, hidden: Tensor, as_tuple: bool) -> Tensor:
        """What the output head is fed, (batch, seq, width) float32 on the CPU.

        Args:
            hidden: behind the last block. as_tuple: whether blocks return a tuple.
        """
        head = self.model.get_output_embeddings()
        with self._loaded(
            [name for name in self._outside() if not name.startswith(f"{self.head}.")]
        ):
            return input_after_blocks(self.model, self.structure, head, hidden.cpu(), as_tuple)

    def loss_gradient(
        self, hidden: Tensor, tokens: Tensor, as_tuple: bool, linears: Sequence[str], draw: Draw
    ) -> tuple[Tensor, Samples]:
        """See `armor.calibrate.gradients.loss_gradient`; on the CPU."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise ArmorError(f"{type(self.model).__name__} has no output head to measure a loss by")
        weight = head._parameters["weight"]
        with self._loaded(self._outside()):
            try:
                if self.tied:
                    name = _module_name(self.model, self.model.get_input_embeddings())
                    _set(head, "weight", self.load(f"{name}.weight"))
                return loss_gradient(
                    self.model, self.structure, hidden.cpu(), tokens, as_tuple, linears, draw
                )
            finally:
                head._parameters["weight"] = weight

    def _outside(self) -> list[str]:
        """What is stored of all but the blocks and the embeddings."""
        embeddings = _module_name(self.model, self.model.get_input_embeddings())
        blocks, own = f"{self.structure.prefix}.", f"{embeddings}."
        return [name for name in self.stored if not name.startswith((blocks, own))]

    @contextmanager
    def _loaded(self, names: Iterable[str]) -> Iterator[None]:
        """While active, these tensors of the model are in memory."""
        empty = {name: _get(self.model, name) for name in names}
        try:
            for name in names:
                _set(self.model, name, self.load(name))
            yield
        finally:
            for name, tensor in empty.items():
                _set(self.model, name, tensor)

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self.stored if name.startswith(prefix)]


def _match(
    model: nn.Module, tensors: Mapping[str, StoredTensor], folder: Path
) -> dict[str, StoredTensor | Converted]:
    """Where each parameter and saved buffer of `model` is stored, by its (first) name."""
    optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    names: dict[int, list[str]] = {}  # tied tensors have several
    held = model.state_dict(keep_vars=True)
    for name, tensor in held.items():
        names.setdefault(id(tensor), []).append(name)
    known = sources(model, tensors)
    found: dict[str, StoredTensor | Converted] = {}
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
    return found


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _module_name(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _get(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), leaf)
    return tensor


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer of `module` by `tensor` itself, whatever its device."""
    owner, _, leaf = name.rpartition(".")
    holder = module.get_submodule(owner)
    if leaf in holder._parameters:
        holder._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        holder._buffers[leaf] = tensor
