"""Texts in JSON files: lines of rows, or one array of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armor.errors import ArmorError
from armor.text.files import TextFile, read_file
from armor.text.rows import TEXT_FIELD, row_document
from armor.text.source import Document, TextLike

_NAME = re.compile(r"(.*\.(?:jsonl|ndjson|json))(?::([^/\\]*))?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class JsonFile(TextFile):
    """``FILE.jsonl[:FIELD]`` or ``FILE.json[:FIELD]``: each row a document.

    A row is an object with the field, or a string. Both kinds of file may hold a row a line or one
    array; by their suffix alone one cannot tell.
    """

    field: str

    @classmethod
    def parse(cls, given: TextLike) -> JsonFile | None:
        """A name that ends so; the field is "text" if none is named."""
        if not isinstance(given, (str, os.PathLike)):
            return None
        name = os.fspath(given)
        found = _NAME.fullmatch(name)
        return None if found is None else cls(name, Path(found[1]), found[2] or TEXT_FIELD)

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of every row.

        Raises `ArmorError` as `TextFile`, for what is not JSON, and for a row without the field.
        """
        for where, row in _rows(read_file(self.path), str(self.path)):
            yield row_document(row, self.field, where, str(self.path))


def _rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Every row and where it is."""
    try:
        whole = _parse(text)
    except (ValueError, RecursionError):
        pass  # not one value, so a row a line
    else:
        for number, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
            yield f"{name}, row {number}", row
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{name}, line {number}"
            try:
                row = _parse(line)
            except (ValueError, RecursionError):
                raise ArmorError(
                    f"{where}: not a JSON object; give an array of rows, or a row a line"
                ) from None
            yield where, row


def _parse(text: str) -> Any:
    """The value that `text` is; a NaN, as Python writes what a table lacks, is null."""
    return json.loads(text, parse_constant=lambda name: None)
