"""Stacking: how a tensor holds the matrices of experts, one expert after the other.

An expert's gate and up are one matrix there. Models differ in whether it is (out, in) or (in, out),
and in whether gate lies before up or their rows alternate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from armor.checkpoint.tensorfile import StoredTensor


@dataclass(frozen=True)
class Stacking:
    """How the parts of one expert, such as gate and up, lie in what is kept for all of them.

    Attributes:
        transposed: matrices are kept as (in, out).
        interleaved: the outputs of the parts alternate; else they are one part after the other.
    """

    transposed: bool = False
    interleaved: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the rows of each part are rows of the whole, one after the other."""
        return not (self.transposed or self.interleaved)

    def cut(self, whole: Tensor, count: int) -> list[Tensor]:
        """The `count` parts of one expert, (out, in) or biases (out,), which are views."""
        rows = whole.mT if self._turns(whole) else whole
        if self.interleaved:
            return [rows[number::count] for number in range(count)]
        return list(rows.chunk(count))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `cut`, a copy."""
        rows = torch.stack([*parts], 1).flatten(0, 1) if self.interleaved else torch.cat([*parts])
        return rows.mT.contiguous() if self._turns(rows) else rows

    def _turns(self, whole: Tensor) -> bool:
        return self.transposed and whole.ndim == 2


#: One part after the other, row by row.
PLAIN_ROWS = Stacking()


@dataclass(frozen=True)
class StackedPart(StoredTensor):
    """A part of what a file keeps for one expert, read as (out, in) or (out,), as `shape` says.

    Attributes:
        whole: what is kept for the expert. number: of the part, among `count`.
    """

    whole: StoredTensor
    number: int
    count: int
    stacking: Stacking

    def load(self) -> Tensor:
        """The part, in memory. Raises `ArmorError`: see `StoredTensor.load`."""
        return self.stacking.cut(self.whole.load(), self.count)[self.number].contiguous()

    def chunks(self, size: int = 16 << 20) -> Iterator[bytes]:
        """The bytes of the part, `size` at a time; what is kept for the expert is in memory."""
        data = self.load().reshape(-1).view(torch.uint8).numpy().data
        for begin in range(0, len(data), size):
            yield bytes(data[begin : begin + size])

    def prefetch(self) -> None:
        """Ask the system to read what is kept for the expert."""
        self.whole.prefetch()


def cut_stored(stored: StoredTensor, stacking: Stacking, count: int) -> Iterator[StackedPart]:
    """The parts of all experts in a tensor of a file, expert by expert, `count` of each."""
    experts, *shape = stored.shape
    size = stored.nbytes // experts
    rows = shape[-1 if stacking.transposed or len(shape) == 1 else 0] // count
    inputs = () if len(shape) == 1 else (shape[0 if stacking.transposed else 1],)
    for expert in range(experts):
        begin = stored.offset + expert * size
        whole = replace(stored, shape=tuple(shape), offset=begin, nbytes=size)
        for number in range(count):
            yield StackedPart(
                stored.path,
                stored.dtype,
                (rows, *inputs),
                begin,
                size // count,
                whole,
                number,
                count,
                stacking,
            )
