"""Every kind of text source: reading it, its identity, what is refused, and adding a kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

import armor
from armor.checkpoint.jsonfile import read_json
from armor.compare.compare import compare
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.load import load_model, load_tokenizer
from armor.report.texts import measured_on
from armor.run.describe import describe_config, record_config
from armor.text import sources
from armor.text.files import TextFile
from armor.text.given import GivenTexts
from armor.text.hub import HubDataset
from armor.text.json_files import JsonFile
from armor.text.papers import PAPER_TEXTS, PaperText
from armor.text.source import Document, Source, TextLike
from armor.text.sources import SOURCES, check_text, parse_source, read_text
from armor.text.unread import UnreadFile


def documents(given: TextLike, split: str = "train") -> list[Document]:
    return list(parse_source(given).documents(split))


@pytest.mark.parametrize(
    ("given", "kind", "name"),
    [
        ("hf:allenai/c4:en", HubDataset, "hf:allenai/c4:en"),
        ("c4", PaperText, "c4"),
        ("rows.jsonl", JsonFile, "rows.jsonl"),
        (Path("a.jsonl.d/rows.jsonl:body"), JsonFile, "a.jsonl.d/rows.jsonl:body"),
        ("rows.JSON", JsonFile, "rows.JSON"),
        ("rows.json:body", JsonFile, "rows.json:body"),
        ("rows.ndjson", JsonFile, "rows.ndjson"),
        ("rows.jsonl.gz", UnreadFile, "rows.jsonl.gz"),
        ("table.CSV:body", UnreadFile, "table.CSV:body"),
        ("a.json.d/text", TextFile, "a.json.d/text"),
        ("c4.txt", TextFile, "c4.txt"),
        (["one", "two"], GivenTexts, "2 given texts"),
        (("one",), GivenTexts, "1 given text"),
    ],
)
def test_kinds(given: TextLike, kind: type[Source], name: str) -> None:
    source = parse_source(given)
    assert type(source) is kind
    assert source.name == name
    assert parse_source(source) is source


def test_a_file_goes_before_a_papers_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(parse_source("wikitext2"), PaperText)
    (tmp_path / "wikitext2").write_text("mine")
    assert read_text("wikitext2") == "mine"


def test_papers_texts_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        HubDataset, "documents", lambda self, split: iter([f"{self.name} {split}"] * 2000)
    )
    assert documents("wikitext2") == ["hf:Salesforce/wikitext:wikitext-2-raw-v1 train"] * 2000
    assert documents("c4", "test") == ["hf:allenai/c4:en validation"] * 1100
    assert PAPER_TEXTS["c4"].windows == 256


def test_a_stream_is_read_once_to_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def two(self: HubDataset, split: str) -> Iterator[str]:
        read.append((self.name, split))
        return iter(["one", "two"])

    monkeypatch.setattr(HubDataset, "documents", two)
    sources._read_stream.cache_clear()
    for _ in range(2):
        assert read_text("hf:some/set") == "one\n\ntwo"
        assert read_text("wikitext2", 4) == "one\n"
    check_text("hf:some/set")  # nothing is fetched to check it
    assert read == [("hf:some/set", "test"), (PAPER_TEXTS["wikitext2"].dataset, "test")]
    sources._read_stream.cache_clear()


def test_identities_follow_the_contents(tmp_path: Path) -> None:
    text = tmp_path / "t.jsonl"
    text.write_text('{"body": "x"}')
    names = (str(text), f"{text}:body", "hf:a/b", ["x"])
    one = [parse_source(name).identity() for name in names]
    text.write_text('{"body": "y"}')
    two = [parse_source(name).identity() for name in names]
    assert [a == b for a, b in zip(one, two, strict=True)] == [False, False, True, True]
    assert parse_source(["x"]).identity() != parse_source(["y"]).identity()
    assert parse_source(str(tmp_path / "absent")).identity() == [str(tmp_path / "absent"), ""]


def test_how_logs_and_records_name_the_calibration_text() -> None:
    for given, name, record in (
        ("c.txt", "c.txt", "c.txt"),
        (("a", "b"), "2 given texts", {"texts": 2, "sha256": sha256(b"a\0b").hexdigest()}),
    ):
        config = PruneConfig(calibration=given, seed=3)
        for found, expected in ((describe_config(config), name), (record_config(config), record)):
            assert found == config.to_dict() | {"calibration": expected}


class Squares(Source):
    """``squares:N``: the first N squares, in words of digits, for ever the same."""

    has_splits = True

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.count = count

    @classmethod
    def parse(cls, given: TextLike) -> Squares | None:
        if isinstance(given, str) and given.startswith("squares:"):
            return cls(given, int(given.removeprefix("squares:")))
        return None

    def documents(self, split: str) -> Iterator[str]:
        start = 0 if split == "train" else self.count
        for number in range(start, start + self.count):
            yield f"{number} times {number} is {number * number}"


def test_a_source_of_ones_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/evaluation.md says: a class, and a line in the list."""
    monkeypatch.setattr(sources, "SOURCES", [Squares, *SOURCES])
    config = PruneConfig(calibration="squares:60", samples=4, seq_len=32, iterations=2)
    result = armor.prune(str(tiny_model), config, tmp_path / "out")
    assert read_json(result.out / "armor_run.json")["config"]["calibration"] == "squares:60"
    model, tokenizer = load_model(str(result.out)), load_tokenizer(str(result.out))
    found = armor.evaluate(model, tokenizer, "squares:60", seq_len=32)
    text = "\n\n".join(f"{n} times {n} is {n * n}" for n in range(60, 120))
    assert (found.source, found.text_bytes) == ("squares:60", len(text))
    assert measured_on("squares:60", "squares:60") is None
    magnitude = replace(config, method="magnitude")
    texts = {"numbers": "squares:60"}
    rows = compare(str(tiny_model), {"magnitude": magnitude}, texts, tmp_path / "cmp", seq_len=32)
    assert [list(row.perplexity) for row in rows] == [["numbers"], ["numbers"]]


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n two\n\n\xc3\xa9\r")
    assert documents(path) == ["one\n two\n\n\u00e9\n"]
    assert read_text(str(path), max_chars=5) == "one\n "


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
