"""Every kind of text source, in one list, and reading a text of any kind."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from armor.text.chats import ChatTemplate
from armor.text.documents import Documents
from armor.text.files import TextFile
from armor.text.given import GivenTexts
from armor.text.hub import HubDataset
from armor.text.json_files import JsonFile
from armor.text.own import OwnText
from armor.text.papers import PaperText
from armor.text.source import Source, TextLike
from armor.text.unread import UnreadFile

#: The first that parses what the user gave is taken. A new kind is a class and a line here.
SOURCES: list[type[Source]] = [
    *(GivenTexts, HubDataset, PaperText, OwnText),
    *(UnreadFile, JsonFile, TextFile),
]


def parse_source(given: TextLike | Source) -> Source:
    """The source that a user's `given` means; a `Source` is itself.

    Args:
        given: the name or path of a file, ``FILE.jsonl[:FIELD]``, ``FILE.json[:FIELD]``,
            ``hf:NAME[:CONFIG]``, "wikitext2", "c4", ``self[:PROMPTS]``, or strings. A
            lone string is always a name, never the text itself.
    """
    if isinstance(given, Source):
        return given
    return next(source for kind in SOURCES if (source := kind.parse(given)) is not None)


def read_text(given: TextLike | Source, max_chars: int | None = None, tokenizer: Any = None) -> str:
    """The text to evaluate on: the documents of the test split, joined by the source's separator.

    Cut after `max_chars` characters; a source is read no further than that. Empty rows are skipped,
    and the user is told how many. The chat template of `tokenizer` writes chats as text.

    Raises:
        ArmorError: as `Source.documents`; all rows are empty; chats, and no template for them.
    """
    source = parse_source(given)
    return (_read_stream if source.is_stream else _read)(source, max_chars, ChatTemplate(tokenizer))


def check_text(given: TextLike | Source) -> None:
    """Raise `ArmorError` for an unusable text, before anybody waits for a model; no stream is read.

    See `Source.is_stream`.
    """
    source = parse_source(given)
    if not source.is_stream:
        for _ in Documents(source, "test"):
            pass


def _read(source: Source, max_chars: int | None, template: ChatTemplate) -> str:
    documents = Documents(source, "test", template)
    parts: list[str] = []
    length = 0
    for document in documents:
        parts.append(document)
        length += len(document) + len(source.separator)
        if max_chars is not None and length >= max_chars + len(source.separator):
            break
    documents.note_skipped()
    return source.separator.join(parts)[:max_chars]


_read_stream = lru_cache(maxsize=4)(_read)  # a comparison reads it once for every model
