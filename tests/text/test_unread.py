"""Tables, compressed files and the like are refused by name, with a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from armor.errors import ArmorError
from armor.text.sources import check_text, read_text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data.csv", r'is a table, .* as \.jsonl with a \{"text": \.\.\.\} a line'),
        ("data.tsv:body", "data.tsv is a table"),
        (
            "data.parquet",
            r"as a data set, hf:.* \(pip install 'armor-prune\[eval\]'",
        ),
        ("data.jsonl.gz", "is compressed: unpack it"),
        ("data.txt.ZST", "is compressed: unpack it"),
        ("book.pdf", "not a text file: export it as plain text"),
    ],
)
def test_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name.partition(":")[0]).write_text("text,id\none,1\n")
    with pytest.raises(ArmorError, match=message) as caught:
        check_text(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("default")
def test_the_remedy_for_a_table_works(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "test.csv").write_text("text,id\none,1\n,2\ntwo,3\n")
    assert read_text(f"hf:{tmp_path}") == "one\n\ntwo"


def test_the_remedy_for_a_column_works(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "one"}))
    assert read_text(path) == "one"
