"""Empty rows: skipped, counted, and told to the user once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from armor.errors import ArmorError
from armor.text import documents as module
from armor.text.chats import Chat
from armor.text.documents import Documents
from armor.text.hub import HubDataset
from armor.text.sources import check_text, parse_source, read_text
from armor.text.windows import token_windows


@pytest.fixture(autouse=True)
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user is told."""
    found: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("armor"), "warning", lambda form, *parts: found.append(form % parts)
    )
    module._note.cache_clear()
    return found


def test_skipped_and_counted(tmp_path: Path, notes: list[str], byte_tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": text} for text in ("one", None, "\n\n\n", "two", "", " \t")]
    path.write_text("\n".join(map(json.dumps, rows)))
    documents = Documents(parse_source(path), "train")
    assert (list(documents), documents.skipped) == (["one", "two"], 4)
    check_text(path)
    assert notes == []
    assert read_text(path) == "one\n\ntwo"
    assert notes == [f"skipped 4 empty rows of {path}"]
    token_windows(path, byte_tokenizer, 1, 8)
    read_text(path)
    assert len(notes) == 1
    assert read_text(["a", "", "b"]) == "a\n\nb"
    assert notes[1:] == ["skipped 1 empty row of 3 given texts"]


def test_no_window_of_blank_lines(byte_tokenizer: Any) -> None:
    texts = ["\n" * 40, "a" * 40, "\n" * 400, "a" * 40]
    windows = token_windows(texts, byte_tokenizer, 4, 16)
    assert all(bytes(row.tolist()).strip() for row in windows)
    assert byte_tokenizer.decode(windows[0].tolist()) == "a" * 16


def test_halves_of_characters_are_replaced(tmp_path: Path, byte_tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a \ud83d b \ud83d\ude00"}) + "\n")
    for source in (path, [json.loads(path.read_text())["text"]]):
        assert read_text(source) == "a \ufffd b \U0001f600"
        assert token_windows(source, byte_tokenizer, 1, 8).shape == (1, 8)
        assert parse_source(source).record()


def test_a_chat_beside_an_empty_text_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    chat = {"text": "", "messages": [{"role": "user", "content": "hello"}]}
    rows = [chat, {"text": " ", "messages": None}, {"text": "own", "messages": chat["messages"]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second, third = parse_source(path).documents("train")
    assert isinstance(first, Chat)
    assert (second, third) == (" ", "own")


@pytest.mark.parametrize("rows", [[None, None], ["", " \n"], [{"text": None}], []])
def test_nothing_but_empty_rows(tmp_path: Path, rows: list[Any], byte_tokenizer: Any) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    for read in (check_text, read_text, lambda path: token_windows(path, byte_tokenizer, 1, 2)):
        with pytest.raises(ArmorError, match=f"holds no text: {len(rows)} rows, all of them empty"):
            read(path)


def test_the_papers_texts_keep_their_blank_rows(
    monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    """WikiText-2 has a blank row beside each headline; every published perplexity counts them."""
    rows = ["", " = Robert = \n", "", "text \n", None]

    def documents(self: HubDataset, split: str) -> Iterator[str | None]:
        return iter(rows)

    monkeypatch.setattr(HubDataset, "documents", documents)
    assert list(Documents(parse_source("wikitext2"), "train")) == rows[:-1]
    assert list(Documents(parse_source("hf:x"), "train")) == [rows[1], rows[3]]
