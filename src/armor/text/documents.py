"""The documents of a source as strings: chats written as text, empty rows skipped and counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache

from armor.errors import ArmorError
from armor.text.chats import Chat, ChatTemplate
from armor.text.source import Source

_LOGGER = logging.getLogger("armor")


class Documents:
    """The documents of one split, to be read once.

    Attributes:
        skipped: how many rows were null or blank, of those that are read by now.
    """

    def __init__(self, source: Source, split: str, template: ChatTemplate | None = None) -> None:
        """Of `source`, as `Source.documents` gives them.

        Args:
            source: one with `Source.keeps_blank` keeps its blank documents.
            template: None leaves chats out: enough to check whether a source can be read.
        """
        self.source = source
        self.skipped = 0
        self._split = split
        self._template = template

    def __iter__(self) -> Iterator[str]:
        """The texts. Raises `ArmorError` as `Source.documents`, and where all rows are empty."""
        found = False
        for document in self.source.documents(self._split):
            if document is None or not (self.source.keeps_blank or _is_text(document)):
                self.skipped += 1
                continue
            found = True
            if isinstance(document, str):
                yield well_formed(document)
            elif self._template is not None:
                yield well_formed(self._template.render(document))
        if not found:
            raise ArmorError(
                f"{self.source.name} holds no text: {self.skipped:,} rows, all of them empty;"
                " give another text"
            )

    def note_skipped(self) -> None:
        """Tell the user how many rows were skipped, once for each text."""
        if self.skipped:
            _note(self.source.name, self.skipped)


def _is_text(document: str | Chat) -> bool:
    return isinstance(document, Chat) or bool(document.strip())


def well_formed(text: str) -> str:
    """`text`, where halves of a character, which no tokenizer takes, are U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@cache  # a comparison reads a text once for every model
def _note(name: str, skipped: int) -> None:
    _LOGGER.warning("skipped %s empty row%s of %s", f"{skipped:,}", "s"[: skipped != 1], name)
