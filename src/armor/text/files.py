"""Texts in files: plain text, and JSON lines."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armor.errors import ArmorError
from armor.text.source import Source, TextLike

_JSON_LINES = ".jsonl"


@dataclass(frozen=True)
class TextFile(Source):
    """A UTF-8 text file: one document."""

    name: str
    path: Path

    @classmethod
    def parse(cls, given: TextLike) -> TextFile | None:
        """Any name or path."""
        if not isinstance(given, (str, os.PathLike)):
            return None
        return cls(os.fspath(given), Path(given))

    def documents(self, split: str) -> Iterator[str]:
        """The whole file. Raises `ArmorError` where it is missing, empty or not text."""
        yield _read(self.path)

    def identity(self) -> list[str]:
        """The name, and a digest of what the file holds."""
        found = self.path.is_file()
        return [self.name, hashlib.sha256(self.path.read_bytes()).hexdigest() if found else ""]


@dataclass(frozen=True)
class JsonLinesFile(TextFile):
    """``FILE.jsonl[:FIELD]``: an object a line, each a document."""

    field: str

    @classmethod
    def parse(cls, given: TextLike) -> JsonLinesFile | None:
        """A name that ends in ``.jsonl``, or has a field after it; the field is "text" if none."""
        if not isinstance(given, (str, os.PathLike)):
            return None
        name = os.fspath(given)
        if name.endswith(_JSON_LINES):
            return cls(name, Path(name), "text")
        stem, found, field = name.rpartition(f"{_JSON_LINES}:")
        return cls(name, Path(stem + _JSON_LINES), field or "text") if found else None

    def documents(self, split: str) -> Iterator[str]:
        """The field of every line. Raises `ArmorError` as `TextFile`, and for a line without."""
        for number, line in enumerate(_read(self.path).split("\n"), 1):
            if not line.strip():
                continue
            where = f"{self.path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError:
                raise ArmorError(f"{where}: not a JSON object") from None
            yield self._text(row, where)

    def _text(self, row: Any, where: str) -> str:
        if not isinstance(row, dict):
            raise ArmorError(f"{where}: not a JSON object")
        if isinstance(row.get(self.field), str):
            return str(row[self.field])
        fields = ", ".join(key for key, value in row.items() if isinstance(value, str)) or "none"
        raise ArmorError(
            f"{where}: no text field {self.field!r} (text fields: {fields}); name one:"
            f" {self.path}:FIELD"
        )


def _read(path: Path) -> str:
    r"""The text of a UTF-8 file, every line end as ``\n``, a byte order mark dropped."""
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise ArmorError(f"{path} is a folder; give a text file") from None
    except OSError as error:
        raise ArmorError(f"cannot read {path}: {error.strerror}") from None
    if b"\0" in data:
        raise ArmorError(f"{path} is not a text file: it holds NUL bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArmorError(f"{path} is not UTF-8 text: bad byte at {error.start}") from None
    if not text.strip():
        raise ArmorError(f"{path} is empty; give a file with text")
    # What reading in text mode gives: \r\n would cost a model that never saw it much perplexity.
    return text.replace("\r\n", "\n").replace("\r", "\n")
