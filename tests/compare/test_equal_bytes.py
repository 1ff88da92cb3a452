"""Rows with the bytes of armor's: what they are, and that they are counted and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from armor.checkpoint.inspect import inspect
from armor.cli import app
from armor.compare.compare import compare, with_gaps
from armor.compare.equal_bytes import SameBytes, with_rivals
from armor.compare.labels import default_labels, parse_methods
from armor.compare.row import Row
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.evaluation.perplexity import evaluate
from armor.models.load import load_model, load_tokenizer
from armor.report import collect
from armor.report.charts.axes import clip
from armor.report.summary import best_row, summary

ADDED = ["sparsegpt-same-bytes", "wanda-same-bytes", "sparsegpt-lowrank", "int8", "int4"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("\n".join(f"line {i}: the square of {i} is {i * i}." for i in range(200)))
    return file


def test_the_command(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["compare", str(tiny_model), "--calibration", str(text), "--ppl", str(text)]
    arguments += ["--methods", "wanda,armor:iterations=2", "--block-size", "4", "--samples", "4"]
    arguments += ["--seq-len", "32", "--out", str(out), "--log", "off", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--equal-bytes"])
    assert result.exception is None
    data = json.loads((out / "results.json").read_text())
    rows = {row["label"]: Row.read(row) for row in data["rows"]}
    assert list(rows) == ["dense", "wanda", "armor-iterations=2", *ADDED]
    own = rows["armor-iterations=2"]
    share = own.linear_bytes / own.dense_linear_bytes
    for label in ADDED:
        row = rows[label]
        assert row.rival
        assert row.dense_linear_bytes == own.dense_linear_bytes
        assert row.stored_dense == (label in ADDED[2:])
        if label.startswith("int"):
            assert row.linear_bytes / own.dense_linear_bytes < share
        else:
            assert share - 0.08 < row.linear_bytes / own.dense_linear_bytes <= share
    budget = inspect(out / "wanda-same-bytes")["budget"]
    assert budget["size"] == pytest.approx(share)
    assert budget["dense"] > 0
    for label in (*rows, "KL", "the file is stored dense", "nothing else"):
        assert label in result.stdout
    report = (out / "report.html").read_text()
    for label in ADDED:
        assert report.count(f">{label}</th>") >= 1
        assert report.count(f">{clip(label)}</text>") >= 2  # in both pictures
    assert "checkpoint itself is stored dense" in report
    assert list(collect(out).runs) == ["wanda", "armor-iterations=2", *ADDED[:2]]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    again = CliRunner().invoke(app, [*arguments, "--equal-bytes"])
    assert again.exception is None
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert json.loads((out / "results.json").read_text())["rows"] == data["rows"]


def test_kl_is_that_of_armor_eval(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    common = {"samples": 4, "seq_len": 32, "calibration": str(text)}
    settings = parse_methods("magnitude,int4", **common)
    texts = {"one": str(text), "two": str(text)}
    rows = compare(str(tiny_model), settings, texts, tmp_path / "out", seq_len=32)
    dense, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    assert rows[0].kl is None
    for row in rows[1:]:
        model = load_model(str(tmp_path / "out" / row.label))
        found = evaluate(model, tokenizer, text, seq_len=32, reference=dense)
        assert found.divergence is not None
        assert row.kl == {"one": found.divergence.kl, "two": found.divergence.kl}
        assert found.divergence.kl > 0
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["kl"] for row in data["rows"]] == [row.kl for row in rows]


def test_a_size_of_armors_own(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    """Low rank follows its layers, one by one."""
    config = PruneConfig(calibration=str(text), samples=4, seq_len=32, iterations=2, size=0.96)
    settings = with_rivals({"armor": config})
    kept = {name: settings[name] for name in ("armor", "sparsegpt-same-bytes", "sparsegpt-lowrank")}
    rows = compare(str(tiny_model), kept, {"t": str(text)}, tmp_path / "out", seq_len=32)
    _, own, sparse, low = (row.linear_bytes for row in rows)
    assert low <= own
    assert sparse <= own
    inside = inspect(tmp_path / "out" / "armor")["layers"]
    assert len(inside) < 14
    run = json.loads((tmp_path / "out" / "sparsegpt-lowrank" / "armor_run.json").read_text())
    assert run["layers"].keys() == inside.keys()
    for name, record in run["layers"].items():
        assert record["compact_bytes"] <= inside[name]["bytes"]


def test_layers_too_small_for_wrappers_are_pruned_by_the_rivals(
    tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    """Blocks of 8 would not shrink this model's attention: there armor leaves it dense."""
    common = {"samples": 4, "seq_len": 32, "calibration": str(text), "block_size": 8}
    settings = with_rivals(parse_methods("armor:iterations=2", **common))
    kept = {name: settings[name] for name in ("armor-iterations=2", "sparsegpt-same-bytes")}
    rows = compare(str(tiny_model), kept, {"t": str(text)}, tmp_path / "out", seq_len=32)
    assert len(inspect(tmp_path / "out" / "armor-iterations=2")["layers"]) < 14
    assert rows[1].linear_bytes * 0.95 < rows[2].linear_bytes <= rows[1].linear_bytes


def test_which_rows_are_added() -> None:
    with pytest.raises(ArmorError, match="name it among --methods"):
        with_rivals(parse_methods("wanda"))
    settings = parse_methods("armor:seed=1,armor-paper")
    found = with_rivals(settings)
    assert list(found) == [*settings, *ADDED]
    named = with_rivals(parse_methods("int8:samples=3,int8,armor"))
    assert list(named) == ["int8-samples=3", "int8", "armor", *ADDED[:3], "int4"]
    paper = settings["armor-paper"]
    assert found["wanda-same-bytes"] == SameBytes("wanda", "armor-paper", paper)
    assert SameBytes("wanda", "armor-paper", paper).describe()["bytes of"] == "armor-paper"
    assert not {"int8", "int4", "sparsegpt-lowrank"} & default_labels().keys()


def test_the_yardstick_is_a_baseline_without_further_bytes() -> None:
    def row(label: str, method: str, value: float, **about: Any) -> Row:
        return Row(label, method, {"t": value}, 50, 100, 1.0, **about)

    rows = with_gaps(
        [
            row("dense", "dense", 2.0),
            row("wanda", "wanda", 6.0),
            row("wanda-same-bytes", "wanda", 4.0, rival=True),
            row("int8", "int8", 2.0, rival=True, stored_dense=True),
            row("armor", "armor", 3.0),
        ]
    )
    gaps = [found.gap_left for found in rows[1:]]
    assert gaps == [{"t": 1.0}, {"t": 0.5}, {"t": 0.0}, {"t": 0.25}]
    shown = summary(rows, best_row(rows))  # whoever wins
    assert "int8 reaches perplexity 2.000" in shown
    assert shown.endswith("; armor has 3.000 at 0.50.")
