"""Files that hold text, but are not text files: refused by their name, with what to do instead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from armor.errors import ArmorError
from armor.text.source import Document, Source, TextLike

_TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".feather")
_PACKED = (".gz", ".zst", ".xz", ".bz2", ".lz4", ".zip", ".tar", ".tgz", ".7z", ".rar")
_OFFICE = (".xlsx", ".xls", ".ods", ".docx", ".doc", ".odt", ".rtf", ".epub", ".pdf")


@dataclass(frozen=True)
class UnreadFile(Source):
    """A table, a compressed file or a document of an office program."""

    name: str
    path: Path

    @classmethod
    def parse(cls, given: TextLike) -> UnreadFile | None:
        """A name with such a suffix, with or without a field after it."""
        if not isinstance(given, (str, os.PathLike)):
            return None
        name = os.fspath(given)
        for path in (Path(name), Path(name.rpartition(":")[0])):
            if path.suffix.lower() in (*_TABLES, *_PACKED, *_OFFICE):
                return cls(name, path)
        return None

    def documents(self, split: str) -> Iterator[Document]:
        """Raises `ArmorError`, always."""
        suffix = self.path.suffix.lower()
        if suffix in _PACKED:
            raise ArmorError(f"{self.path} is compressed: unpack it, and give what is in it")
        if suffix in _TABLES:
            raise ArmorError(
                f"{self.path} is a table, which is not read as text: write its column as .jsonl"
                ' with a {"text": ...} a line, or give its folder as a data set,'
                f" hf:{self.path.parent} (pip install 'armor-prune[eval]')"
            )
        raise ArmorError(f"{self.path} is not a text file: export it as plain text, .txt")
