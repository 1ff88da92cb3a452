"""Where text comes from: a text file, a .jsonl file, a Hugging Face dataset, or given strings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from armor.errors import ArmorError

Source = str | os.PathLike[str] | Sequence[str]
SEPARATOR = "\n\n"  # between documents, as in the usual WikiText-2 protocol


def describe(source: Source) -> str:
    """A short name of `source` for messages and tables."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return f"{len(source)} given text{'s' if len(source) != 1 else ''}"


def documents(source: Source, split: str = "train") -> Iterator[str]:
    """The documents of `source` in order.

    Args:
        source: a UTF-8 text file (one document); ``FILE.jsonl[:FIELD]`` (one object a line, field
            "text" unless named); ``hf:NAME[:CONFIG]`` (streamed; field "text", else its only string
            column); or strings. A lone string is always a path or a dataset, never the text itself.
        split: the dataset's split; where it is missing, the nearest one that is there.

    Raises:
        ArmorError: nothing given, or a file or dataset that is missing, empty or not text.
    """
    if not isinstance(source, (str, os.PathLike)):
        yield from _given(source)
        return
    name = os.fspath(source)
    if name.startswith("hf:"):
        yield from _dataset(name, split)
    elif name.endswith(".jsonl") or ".jsonl:" in name:
        path, _, field = name.partition(".jsonl")
        yield from _jsonl(Path(path + ".jsonl"), field[1:] or "text")
    else:
        yield _read(Path(name))


def read_text(source: Source, split: str = "test", max_chars: int | None = None) -> str:
    """The documents of `source` joined by blank lines, cut after `max_chars` characters.

    A dataset is read no further than that. Raises `ArmorError` as `documents` does.
    """
    parts: list[str] = []
    length = 0
    for document in documents(source, split):
        parts.append(document)
        length += len(document) + len(SEPARATOR)
        if max_chars is not None and length >= max_chars + len(SEPARATOR):
            break
    return SEPARATOR.join(parts)[:max_chars]


def _given(texts: Sequence[str]) -> Iterator[str]:
    if not any(texts):
        raise ArmorError("no text given; pass a text file, a .jsonl file or hf:NAME[:CONFIG]")
    for text in texts:
        if not isinstance(text, str):
            raise ArmorError(f"expected strings as text, found {type(text).__name__}")
        yield text


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


def _jsonl(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise ArmorError(f"{path}, line {number}: not a JSON object") from None
        yield _field(row, field, f"{path}, line {number}", f"{path}:FIELD")


def _field(row: Any, field: str, where: str, remedy: str) -> str:
    if not isinstance(row, dict):
        raise ArmorError(f"{where}: not a JSON object")
    if isinstance(row.get(field), str):
        return str(row[field])
    strings = [key for key, value in row.items() if isinstance(value, str)]
    there = ", ".join(strings) or "none"
    raise ArmorError(f"{where}: no text field {field!r} (text fields: {there}); name one: {remedy}")


def _dataset(name: str, split: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise ArmorError(
            f"{name} needs the datasets library: pip install 'armor-prune[eval]'"
        ) from None
    repository, _, config = name.removeprefix("hf:").partition(":")
    try:
        loaded = datasets.load_dataset(repository, config or None, streaming=True)
        order = [s for s in (split, "test", "validation", "train", *loaded) if s in loaded]
        yield from _rows(iter(loaded[order[0]]), name)
    except ArmorError:
        raise
    except Exception as error:
        # The library raises a dozen types: no network, no such name, a config to be chosen, ...
        reason = " ".join(str(error).split())[:200]
        raise ArmorError(
            f"cannot load {name} ({type(error).__name__}: {reason}); check the name, the config "
            "and the network, or give a text file"
        ) from None


def _rows(rows: Iterator[dict[str, Any]], name: str) -> Iterator[str]:
    field = "text"
    for index, row in enumerate(rows):
        if index == 0 and not isinstance(row.get(field), str):
            strings = [key for key, value in row.items() if isinstance(value, str)]
            if len(strings) != 1:
                there = ", ".join(strings) or "none"
                raise ArmorError(f"{name} has no column 'text' (text columns: {there})")
            field = strings[0]
        yield row[field]
