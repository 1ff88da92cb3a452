"""Data sets by the datasets library, read from local folders: splits, columns, null rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from armor.errors import ArmorError
from armor.text.chats import Chat
from armor.text.rows import text_column
from armor.text.source import Document
from armor.text.sources import parse_source, read_text


def documents(given: str, split: str = "train") -> list[Document]:
    return list(parse_source(given).documents(split))


def make_dataset(folder: Path, column: str = "text", **more: str) -> str:
    for split in ("train", "test"):
        rows = [{column: f"{split} {i}", "number": i, **more} for i in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"hf:{folder}"


@pytest.mark.filterwarnings("default")
def test_dataset_splits_and_columns(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    name = make_dataset(tmp_path, "body")
    assert documents(name) == ["train 0", "train 1", "train 2"]
    assert read_text(name) == "test 0\n\ntest 1\n\ntest 2"
    assert documents(name, "validation")[0] == "test 0"


@pytest.mark.filterwarnings("default")
def test_dataset_without_a_clear_column(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    name = make_dataset(tmp_path, "question", answer="yes")
    with pytest.raises(ArmorError, match=r"no column 'text' \(text columns: question, answer\)"):
        read_text(name)


def write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"hf:{folder}"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("null", [0, 3])
def test_null_rows_are_no_documents(tmp_path: Path, null: int) -> None:
    pytest.importorskip("datasets")
    rows = [{"text": None if n == null else f"row {n}", "title": "x"} for n in range(6)]
    name = write_rows(tmp_path, rows)
    assert documents(name) == [row["text"] for row in rows]
    assert read_text(name) == "\n\n".join(f"row {n}" for n in range(6) if n != null)


@pytest.mark.filterwarnings("default")
def test_a_data_set_of_chats(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    messages = [{"role": "user", "content": "Hello"}]
    name = write_rows(tmp_path, [{"id": "a", "messages": messages}, {"id": "b", "messages": None}])
    first, second = documents(name)
    assert isinstance(first, Chat)
    assert list(first.messages) == messages
    assert second is None


@pytest.mark.parametrize(
    ("head", "column"),
    [
        ([{"text": None}, {"text": "a"}], "text"),
        ([{"text": None, "title": "a"}] * 3, "text"),
        ([{"messages": None, "id": "a"}, {"messages": [], "id": "b"}], "messages"),
        ([{"conversations": [], "id": "a"}], "conversations"),
        (
            [{"text": None, "messages": []}, {"text": "", "messages": [{"role": "user"}]}],
            "messages",
        ),
        ([{"body": None, "n": 1}, {"body": "a", "n": 2}], "body"),
        ([{"text": 3, "body": "a"}], "body"),
    ],
)
def test_which_column_is_the_text(head: list[dict[str, Any]], column: str) -> None:
    assert text_column(head, "hf:x") == column


@pytest.mark.parametrize("head", [[], [{"a": None, "b": 1}], [{"a": None, "b": "x"}, {"a": "y"}]])
def test_no_clear_column(head: list[dict[str, Any]]) -> None:
    with pytest.raises(ArmorError, match=r"no column 'text' \(text columns: .*rename one to text"):
        text_column(head, "hf:x")


@pytest.mark.filterwarnings("default")
def test_a_dataset_out_of_reach_is_one_line() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(ArmorError, match="cannot load hf:no/such-set") as caught:
        read_text("hf:no/such-set")
    assert "\n" not in str(caught.value)


def test_without_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ArmorError, match=r"pip install 'armor-prune\[eval\]'"):
        read_text("hf:any/thing")
