"""Source: where a text comes from, as every kind of source implements it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from armor.text.chats import Chat

#: What a user may give as a text; `armor.text.sources.parse_source` makes a `Source` of it.
TextLike = str | os.PathLike[str] | Sequence[str]
#: What a row holds: a text, a chat that the tokenizer's template makes a text of, or nothing.
Document = str | Chat | None


class Source(ABC):
    """A text, found but not read yet.

    Attributes:
        name: short, for messages and tables; as the user wrote it.
        is_stream: whether it comes over the network or has no end: it is read no further than
            needed, not read ahead to check it, and kept in memory between evaluations.
        has_splits: whether it holds other documents to calibrate than to evaluate, or may.
        separator: between its documents.
        keeps_blank: whether blank documents stay, as in papers; else they are skipped.
        windows: how many windows an evaluation reads; None for all.
    """

    name: str
    is_stream: bool = False
    has_splits: bool = False
    separator: str = "\n\n"  # as in the usual WikiText-2 protocol
    keeps_blank: bool = False
    windows: int | None = None

    @classmethod
    @abstractmethod
    def parse(cls, given: TextLike) -> Source | None:
        """The source that `given` means; None if it is of another kind. Reads no text."""

    @abstractmethod
    def documents(self, split: str) -> Iterator[Document]:
        """The documents in order; see `armor.text.documents.Documents` for what becomes of them.

        Args:
            split: "train" to calibrate, "test" to evaluate. A source that has no splits ignores it.

        Raises:
            ArmorError: a text that is missing, empty, or no text.
        """

    def identity(self) -> Any:
        """JSON-ready: equal for equal texts. Measurements are kept and found again by it."""
        return [self.name, ""]

    def record(self) -> Any:
        """JSON-ready: what a run writes down about its text."""
        return self.name
