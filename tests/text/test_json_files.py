"""JSON files: lines and arrays of texts, records and chats; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from armor.errors import ArmorError
from armor.text.chats import Chat
from armor.text.source import Document
from armor.text.sources import parse_source, read_text

CHAT = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "I do."}]


def documents(given: Path | str) -> list[Document]:
    return list(parse_source(given).documents("train"))


def write(path: Path, content: Any, lines: bool = False) -> Path:
    text = "\n".join(map(json.dumps, content)) + "\n\n" if lines else json.dumps(content, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


def test_lines(tmp_path: Path) -> None:
    texts, bodies = ["a\u2028b", "", "c"], ["B1", "B2", ""]
    rows = [{"text": text, "body": body} for text, body in zip(texts, bodies, strict=True)]
    path = write(tmp_path / "rows.jsonl", rows, lines=True)
    assert documents(path) == texts
    assert documents(f"{path}:body") == bodies
    assert read_text(path) == "a\u2028b\n\nc"
    with pytest.raises(ArmorError, match=r"line 1: no text field 'title' \(.*: text, body\)"):
        documents(f"{path}:title")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson"])
@pytest.mark.parametrize("lines", [True, False])
def test_lines_and_arrays_are_told_apart_by_what_they_hold(
    tmp_path: Path, suffix: str, lines: bool
) -> None:
    rows = [{"text": "one", "id": 1}, "two", None, {"text": None, "id": 3}, {}, {"text": "three"}]
    path = write(tmp_path / f"rows.{suffix}", rows, lines)
    assert documents(path) == ["one", "two", None, None, None, "three"]
    assert read_text(path) == "one\n\ntwo\n\nthree"


def test_one_record_alone(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "row.json", {"text": "one"})) == ["one"]


def test_a_nan_is_null(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", [{"text": "one"}, {"text": float("nan")}])
    assert documents(path) == ["one", None]


def test_chats(tmp_path: Path) -> None:
    theirs = [{"from": "human", "value": "Go on."}, {"from": "gpt", "value": "I do."}]
    rows = [
        {"messages": CHAT, "text": None},
        {"conversations": theirs},
        {"messages": []},
        {"messages": [{"role": "user", "content": " "}]},
    ]
    path = write(tmp_path / "chat.jsonl", rows, lines=True)
    first, second, *empty = documents(path)
    assert isinstance(first, Chat)
    assert isinstance(second, Chat)
    assert list(first.messages) == list(second.messages) == CHAT
    assert (first.where, second.where) == (f"{path}, line 1", f"{path}, line 2")
    assert empty == [None, None]


def test_text_goes_before_a_chat_and_a_field_may_be_one(tmp_path: Path) -> None:
    row = {"text": "a text", "messages": CHAT, "talk": CHAT}
    path = write(tmp_path / "rows.json", [row])
    assert documents(path) == ["a text"]
    (named,) = documents(f"{path}:talk")
    assert isinstance(named, Chat)


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", "3", "[" * 100_000])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line, encoding="utf-8")
    with pytest.raises(ArmorError, match="line 2: not a JSON object"):
        documents(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"data": [{"text": "x"}]}, r'\(text fields: none\); write each document as \{"text"'),
        ({"body": "x", "n": 1}, r"\(text fields: body\); name one: .*rows.json:FIELD"),
        ({"text": 3}, "no text field 'text'"),
        ({"messages": ["x"]}, "not a list of messages; each has"),
        ({"messages": [{"from": "human", "value": 3}]}, "not a list of messages"),
        ([1], "not a JSON object"),
    ],
)
def test_a_row_without_text(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "rows.json", [{"text": "fine"}, row])
    with pytest.raises(ArmorError, match="row 2: ") as caught:
        documents(path)
    assert caught.match(message)
    assert "\n" not in str(caught.value)
