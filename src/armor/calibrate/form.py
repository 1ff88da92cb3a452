"""Form: in what a block returns its hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Form:
    """Hidden states come alone, or first in a tuple or list, by model and transformers version.

    Attributes:
        others: what comes behind them, such as weights of the attention; None where they are alone.
        is_list: whether in a list.
    """

    others: tuple[Any, ...] | None = None
    is_list: bool = False

    @classmethod
    def of(cls, output: Any) -> Form:
        """That of what a block has returned."""
        if not isinstance(output, (tuple, list)):
            return cls()
        return cls(tuple(output[1:]), isinstance(output, list))

    @property
    def is_plain(self) -> bool:
        """Whether it is the same for every batch."""
        return all(other is None for other in self.others or ())

    def wrap(self, hidden: Tensor) -> Any:
        """`hidden` as such a block would return it."""
        if self.others is None:
            return hidden
        return [hidden, *self.others] if self.is_list else (hidden, *self.others)


def hidden_in(output: Any) -> Tensor:
    """The hidden states in what a block has returned."""
    hidden: Tensor = output[0] if isinstance(output, Sequence) else output
    return hidden
