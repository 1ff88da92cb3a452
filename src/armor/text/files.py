"""Texts in plain files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from armor.errors import ArmorError
from armor.text.source import Document, Source, TextLike


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

    def documents(self, split: str) -> Iterator[Document]:
        """The whole file. Raises `ArmorError` where it is missing, empty or not text."""
        yield read_file(self.path)

    def identity(self) -> list[str]:
        """The name, and a digest of what the file holds."""
        found = self.path.is_file()
        return [self.name, hashlib.sha256(self.path.read_bytes()).hexdigest() if found else ""]


def read_file(path: Path) -> str:
    r"""The text of a UTF-8 file, every line end as ``\n``, a byte order mark dropped.

    Raises:
        ArmorError: the file is missing, a folder, empty, binary or in another encoding.
    """
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
