"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from armor.errors import ArmorError
from armor.hub import hub_failure
from armor.text.source import Source, TextLike

_PREFIX = "hf:"


@dataclass(frozen=True)
class HubDataset(Source):
    """``hf:NAME[:CONFIG]``: the column "text" of each row, else the only column of strings."""

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

    def documents(self, split: str) -> Iterator[str]:
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
            yield from self._texts(iter(loaded[order[0]]))
        except ArmorError:
            raise
        except Exception as error:
            # The library raises a dozen types: no network, no such name, a config to be chosen, ...
            raise ArmorError(
                f"cannot load {self.name}: {hub_failure(repository, error, 'dataset')}; check the"
                " name, the config and the network, or give a text file"
            ) from None

    def _texts(self, rows: Iterator[dict[str, Any]]) -> Iterator[str]:
        field = "text"
        for index, row in enumerate(rows):
            if index == 0 and not isinstance(row.get(field), str):
                strings = [key for key, value in row.items() if isinstance(value, str)]
                if len(strings) != 1:
                    columns = ", ".join(strings) or "none"
                    raise ArmorError(f"{self.name} has no column 'text' (text columns: {columns})")
                field = strings[0]
            yield row[field]
