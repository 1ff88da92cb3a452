"""``armor eval`` on a real folder, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from armor.cli import evaluate as command
from armor.errors import ArmorError


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    command.register(app)
    return app


def refused(app: typer.Typer, *arguments: str) -> str:
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, ArmorError)
    assert "\n" not in str(error)
    return str(error)


def test_table_and_json(app: typer.Typer, shared: Path, tmp_path: Path) -> None:
    folder = str(shared / "models/stories-260k")
    text = str(shared / "data/tinystories/tinystories_valid_sample.txt")
    file = tmp_path / "out.json"
    arguments = [folder, "--ppl", text, "--ppl", text, "--seq-len", "64", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--max-chars", "3000", "--json", str(file)])
    assert result.exception is None
    found = json.loads(file.read_text())
    assert (found["model"], found["dtype"], found["device"]) == (folder, "float32", "cpu")
    assert found["max_chars"] == 3000
    first, second = found["perplexity"]
    assert first == second
    assert (first["seq_len"], first["source"]) == (64, text)
    assert first["tokens"] == first["windows"] * 63
    assert first["ci95"][0] < first["perplexity"] < first["ci95"][1]
    for shown in ("tinystories_valid", f"{first['perplexity']:.4f}", f"{first['tokens']:,}"):
        assert shown in result.stdout


def test_refusals(app: typer.Typer, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    assert "cannot read" in refused(app, "model", "--ppl", str(text))
    text.write_text("a text")
    assert "nothing to evaluate" in refused(app, "model")
    assert "no such folder" in refused(app, str(tmp_path / "no"), "--ppl", str(text))
    assert "unknown device 'tpu'" in refused(app, "m", "--ppl", str(text), "--device", "tpu")
    missing = str(tmp_path / "no" / "out.json")
    assert "its folder does not exist" in refused(app, "m", "--ppl", str(text), "--json", missing)
