"""LayerNames: which block a planned layer is in, and what it is called there."""

from __future__ import annotations

from collections.abc import Iterable

from armor.models.streamed import StreamedModel


class LayerNames:
    """The planned layers of a model; its output head counts as the block after the last.

    Args:
        names: of the layers, as the checkpoint calls them.
    """

    def __init__(self, model: StreamedModel, names: Iterable[str]) -> None:
        self._model = model
        self._by_block: dict[int, list[str]] = {}
        for name in names:
            self._by_block.setdefault(self.block_of(name), []).append(name)

    def in_block(self, index: int) -> list[str]:
        """The planned layers of a block."""
        return self._by_block.get(index, [])

    def name(self, index: int, linear: str) -> str:
        """A linear's name, given its path in block `index`; of "" the block's own."""
        path = f"{self._model.structure.prefix}.{index}.{linear}".rstrip(".")
        if index == len(self._model.structure.blocks):
            path = self._model.head or ""
        return self._model.layout.name(path)

    def block_of(self, name: str) -> int:
        """The number of the block that a layer is in."""
        path = self._model.layout.path(name)
        if path == self._model.head:
            return len(self._model.structure.blocks)
        return int(path.removeprefix(f"{self._model.structure.prefix}.").partition(".")[0])

    def path_in_block(self, name: str) -> str:
        """The inverse of `name`."""
        return name.removeprefix(self.name(self.block_of(name), "") + ".")
