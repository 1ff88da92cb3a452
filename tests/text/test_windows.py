"""Token windows: reading each kind of source, cutting, drawing, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from armor.errors import ArmorError
from armor.text import windows as data
from armor.text.sources import documents, read_text
from armor.text.windows import token_windows


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a character, and a model limit that every text here exceeds."""
    vocabulary = {chr(code): code for code in range(128)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?", model_max_length=5)


def text_of(windows: torch.Tensor) -> list[str]:
    return ["".join(map(chr, row)) for row in windows.tolist()]


def test_exactly_enough_comes_in_order(tokenizer: Any) -> None:
    windows = token_windows(("abcdefghijk",), tokenizer, samples=3, seq_len=3, seed=5)
    assert text_of(windows) == ["abc", "def", "ghi"]
    assert windows.dtype == torch.int64


def test_documents_are_joined_by_a_blank_line(tokenizer: Any) -> None:
    assert text_of(token_windows(["abc", "def"], tokenizer, 1, 8)) == ["abc\n\ndef"]


def test_draws_without_replacement_and_nested(tokenizer: Any) -> None:
    text = [bytes(range(32, 112)).decode()]
    draw = text_of(token_windows(text, tokenizer, 12, 4, seed=1))
    assert len(set(draw)) == 12
    assert all((ord(window[0]) - 32) % 4 == 0 and window in text[0] for window in draw)
    assert draw != sorted(draw)
    assert text_of(token_windows(text, tokenizer, 12, 4, seed=1)) == draw
    assert text_of(token_windows(text, tokenizer, 5, 4, seed=1)) == draw[:5]
    assert text_of(token_windows(text, tokenizer, 12, 4, seed=2)) != draw


@given(st.lists(st.text("ab \n", max_size=30), min_size=1).filter(any), st.integers(1, 20))
def test_pieces_lose_nothing_and_are_short(texts: list[str], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_CHUNK", chunk)
        pieces = list(data._pieces(texts))
    assert "".join(pieces) == "\n\n".join(texts)
    assert max(map(len, pieces)) <= chunk


def test_pieces_end_at_line_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_CHUNK", 8)
    pieces = list(data._pieces(["one two\nthree four\nfive"]))
    assert pieces == ["one two\n", "three ", "four\n", "five"]


def test_no_warning_about_the_length(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer.deprecation_warnings.clear()  # it warns once only
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        data.tokenize(tokenizer, "a text longer than the model's five tokens")
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert caplog.messages == []


def test_too_short_says_how_much_is_needed(tokenizer: Any) -> None:
    with pytest.raises(ArmorError, match=r"has 1,500 tokens.*200 windows of 10 need 2,000.*--sam"):
        token_windows(("x" * 1500,), tokenizer, 200, 10)


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n two\n\n\xc3\xa9\r")
    assert list(documents(path)) == ["one\n two\n\n\u00e9\n"]
    assert read_text(str(path), max_chars=5) == "one\n "


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    texts, bodies = ["a\u2028b", "", "c"], ["B1", "B2", ""]
    rows = [{"text": text, "body": body} for text, body in zip(texts, bodies, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    assert list(documents(str(path))) == texts
    assert list(documents(f"{path}:body")) == bodies
    assert read_text(str(path)) == "a\u2028b\n\n\n\nc"
    with pytest.raises(ArmorError, match=r"line 1: no text field 'title' \(.*: text, body\)"):
        list(documents(f"{path}:title"))


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", "3"])
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line, encoding="utf-8")
    with pytest.raises(ArmorError, match="line 2: not a JSON object"):
        list(documents(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n ", "is empty"),
        (b"abc\0def", "NUL bytes"),
        (b"abc \xff\xfe", "not UTF-8 text: bad byte at 4"),
        (None, "No such file"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArmorError, match=message) as caught:
        read_text(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArmorError, match="is a folder"):
        read_text(tmp_path)


@pytest.mark.parametrize("texts", [(), [], [""]])
def test_nothing_given(texts: Any, tokenizer: Any) -> None:
    with pytest.raises(ArmorError, match="no text given"):
        token_windows(texts, tokenizer, 1, 1)


def make_dataset(folder: Path, column: str = "text", **more: str) -> str:
    for split in ("train", "test"):
        rows = [{column: f"{split} {i}", "number": i, **more} for i in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"hf:{folder}"


@pytest.mark.filterwarnings("default")
def test_dataset_splits_and_columns(tmp_path: Path, tokenizer: Any) -> None:
    pytest.importorskip("datasets")
    name = make_dataset(tmp_path, "body")
    assert list(documents(name)) == ["train 0", "train 1", "train 2"]
    assert read_text(name) == "test 0\n\ntest 1\n\ntest 2"
    assert next(documents(name, "validation")) == "test 0"
    assert text_of(token_windows(name, tokenizer, 1, 7)) != []


@pytest.mark.filterwarnings("default")
def test_dataset_without_a_clear_column(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    name = make_dataset(tmp_path, "question", answer="yes")
    with pytest.raises(ArmorError, match=r"no column 'text' \(text columns: question, answer\)"):
        read_text(name)


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


def test_a_dataset_is_read_no_further_than_needed(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    read = []

    def endless(source: Any, split: str = "train") -> Any:
        while True:
            read.append(len(read))
            yield f"document {len(read)}"

    monkeypatch.setattr(data, "documents", endless)
    monkeypatch.setattr(data, "_CHUNK", 50)
    assert token_windows("hf:endless", tokenizer, 2, 10).shape == (2, 10)
    assert len(read) < 50
