"""What the row of a file or a data set holds: a text, a chat, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from armor.errors import ArmorError
from armor.text.chats import CHAT_FIELDS, Chat
from armor.text.source import Document

#: The field that is read where none is named.
TEXT_FIELD = "text"
#: So many rows decide which column of a data set is the text.
HEAD = 100


def row_document(row: Any, field: str, where: str, file: str) -> Document:
    """The document in a row of a JSON file.

    Args:
        row: an object with `field`, or a string, which is the document itself; None is no document.
        field: where it is "text", a row without it may hold a chat: "messages" or "conversations".
        where: the row, and `file` the file, for messages of errors.

    Raises:
        ArmorError: no such row.
    """
    if row is None or isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise ArmorError(f"{where}: not a JSON object")
    fields = (field, *CHAT_FIELDS) if field == TEXT_FIELD else (field,)
    present = [row[name] for name in fields if name in row]
    value = next(
        (value for value in (*filter(_holds, present), *present) if value is not None), None
    )
    if isinstance(value, (str, list)) or (value is None and (present or not row)):
        return value_document(value, where)
    texts = ", ".join(key for key, value in row.items() if isinstance(value, str))
    remedy = f"name one: {file}:FIELD" if texts else 'write each document as {"text": "..."}'
    raise ArmorError(f"{where}: no text field {field!r} (text fields: {texts or 'none'}); {remedy}")


def _holds(value: Any) -> bool:
    """Whether there is anything in a field."""
    return bool(value.strip() if isinstance(value, str) else value)


def value_document(value: Any, where: str) -> Document:
    """The document that a field holds. Raises `ArmorError`: neither a text, a chat nor None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return Chat.of(value, where)
    raise ArmorError(f"{where}: neither a text nor a list of messages")


def text_column(head: Sequence[dict[str, Any]], name: str) -> str:
    """The column of a data set that holds its documents.

    "text"; else "messages" or "conversations"; else the only one with strings.

    Args:
        head: its first rows. name: its name.

    Raises:
        ArmorError: there is no such column, or there are several.
    """
    columns = list(head[0]) if head else []
    fitting = []
    for column, kind in ((TEXT_FIELD, str), *((field, list) for field in CHAT_FIELDS)):
        values = [row.get(column) for row in head]
        if column in columns and all(value is None or isinstance(value, kind) for value in values):
            fitting.append(column)
    if fitting:
        filled = (column for column in fitting if any(_holds(row.get(column)) for row in head))
        return next(filled, fitting[0])
    strings = [key for key in columns if any(isinstance(row.get(key), str) for row in head)]
    if len(strings) != 1:
        found = ", ".join(strings) or "none"
        raise ArmorError(
            f"{name} has no column 'text' (text columns: {found}); rename one to text, or write it"
            " to a .jsonl file"
        )
    return strings[0]
