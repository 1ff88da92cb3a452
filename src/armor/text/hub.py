"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from armor.errors import ArmorError
from armor.hub import hub_failure
from armor.text.rows import HEAD, text_column, value_document
from armor.text.source import Document, Source, TextLike

_PREFIX = "hf:"


@dataclass(frozen=True)
class HubDataset(Source):
    """``hf:NAME[:CONFIG]``: each row a document; for its column see `text_column`."""

    name: str
    is_stream = True
    has_splits = True

    @classmethod
    def parse(cls, given: TextLike) -> HubDataset | None:
        """A name that begins with ``hf:``."""
        if not isinstance(given, (str, os.PathLike)):
            return None
        name = os.fspath(given)
        return cls(name) if name.startswith(_PREFIX) else None

    def documents(self, split: str) -> Iterator[Document]:
        """The rows of `split`, streamed; where it is missing, of the nearest one that is there.

        Raises:
            ArmorError: no ``datasets`` library, no such data set, no network, no clear column.
        """
        try:
            import datasets
        except ImportError:
            raise ArmorError(
                f"{self.name} needs the datasets library: pip install 'armor-prune[eval]'"
            ) from None
        repository, _, config = self.name.removeprefix(_PREFIX).partition(":")
        try:
            loaded = datasets.load_dataset(repository, config or None, streaming=True)
            order = [s for s in (split, "test", "validation", "train", *loaded) if s in loaded]
            yield from self._documents(iter(loaded[order[0]]))
        except ArmorError:
            raise
        except Exception as error:
            # The library raises a dozen types: no network, no such name, a config to be chosen, ...
            raise ArmorError(
                f"cannot load {self.name}: {hub_failure(repository, error, 'dataset')}; check the"
                " name, the config and the network, or give a text file"
            ) from None

    def _documents(self, rows: Iterator[dict[str, Any]]) -> Iterator[Document]:
        head = list(islice(rows, HEAD))
        column = text_column(head, self.name)
        for number, row in enumerate(chain(head, rows), 1):
            yield value_document(row.get(column), f"{self.name}, row {number}")
