"""Texts that are given as strings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from armor.errors import ArmorError
from armor.text.source import Document, Source, TextLike


@dataclass(frozen=True)
class GivenTexts(Source):
    """A sequence of strings, each a document. A lone string always names a file or a data set."""

    texts: tuple[str, ...]

    @classmethod
    def parse(cls, given: TextLike) -> GivenTexts | None:
        """Anything but a string or a path."""
        return None if isinstance(given, (str, os.PathLike)) else cls(tuple(given))

    @property
    def name(self) -> str:  # type: ignore[override]
        """How many there are."""
        return f"{len(self.texts)} given text{'s' if len(self.texts) != 1 else ''}"

    def documents(self, split: str) -> Iterator[Document]:
        """The texts. Raises `ArmorError` for none, for nothing but blank ones, or no strings."""
        if not any(not isinstance(text, str) or text.strip() for text in self.texts):
            raise ArmorError("no text given; pass a text file, a .jsonl file or hf:NAME[:CONFIG]")
        for text in self.texts:
            if not isinstance(text, str):
                raise ArmorError(f"expected strings as text, found {type(text).__name__}")
            yield text

    def identity(self) -> str:
        """A digest of the texts."""
        return hashlib.sha256(json.dumps([self.texts]).encode()).hexdigest()[:16]

    def record(self) -> dict[str, Any]:
        """Their number and SHA-256."""
        digest = hashlib.sha256("\0".join(self.texts).encode(errors="surrogatepass")).hexdigest()
        return {"texts": len(self.texts), "sha256": digest}
