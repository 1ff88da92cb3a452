"""compare: its numbers, and that only what is missing is done."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from armor.checkpoint.inspect import inspect
from armor.checkpoint.lock import Lock
from armor.cli import app
from armor.cli.compare import text_names
from armor.compare import checkpoints
from armor.compare.compare import compare, with_gaps
from armor.compare.labels import parse_methods
from armor.compare.row import Row
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.evaluation import measure
from armor.evaluation.perplexity import evaluate
from armor.evaluation.record import key_of, model_id
from armor.models.load import load_model, load_tokenizer
from armor.text.sources import parse_source


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("\n".join(f"line {i}: the square of {i} is {i * i}." for i in range(200)))
    return file


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was pruned and evaluated, in order."""
    log: list[str] = []
    prune, measured = checkpoints.prune, measure.evaluate

    def noted_prune(model: Any, config: Any, out: Path, *args: Any, **rest: Any) -> Any:
        log.append(f"prune {out.name}")
        return prune(model, config, out, *args, **rest)

    def noted_evaluate(model: Any, tokenizer: Any, source: Any, **rest: Any) -> Any:
        log.append(f"read {Path(source).name}")
        return measured(model, tokenizer, source, **rest)

    monkeypatch.setattr(checkpoints, "prune", noted_prune)
    monkeypatch.setattr(measure, "evaluate", noted_evaluate)
    return log


def settings(text: Path, methods: str = "wanda,armor") -> Any:
    common = {"samples": 4, "seq_len": 32, "block_size": 4, "iterations": 2}
    return parse_methods(methods, calibration=str(text), **common)


def test_only_what_is_missing_is_done(
    tiny_model: Path, text: Path, tmp_path: Path, done: list[str]
) -> None:
    out, texts = tmp_path / "out", {"one": str(text)}
    started: list[str] = []

    def run(methods: str = "wanda,armor") -> list[Row]:
        started.clear()
        done.clear()
        chosen = settings(text, methods)
        return compare(
            str(tiny_model),
            chosen,
            texts,
            out,
            seq_len=32,
            on_start=lambda label: started.append(label) or checkpoints.Progress(),  # type: ignore
        )

    first = run()
    read = "read text.txt"
    assert done == [read, "prune wanda", read, "prune armor", read]
    assert [row.label for row in first] == started == ["dense", "wanda", "armor"]
    assert run() == first
    assert done == started == []
    assert len(run("wanda,magnitude,armor")) == 4
    assert (done, started) == (["prune magnitude", read], ["magnitude"])
    (tmp_path / "more.txt").write_text("another text " * 30)
    texts["two"] = str(tmp_path / "more.txt")
    run()
    assert done == ["read more.txt"] * 3
    text.write_text(text.read_text() + "and a line more")
    run()
    assert done == [
        read,
        "prune wanda",
        read,
        "read more.txt",
        "prune armor",
        read,
        "read more.txt",
    ]
    run("armor:seed=1,armor")
    assert done == ["prune armor-seed=1", read, "read more.txt"]


def test_the_numbers(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows: list[list[Row]] = []
    found = compare(
        str(tiny_model), settings(text), {"t": str(text)}, out, seq_len=32, on_row=rows.append
    )
    dense, wanda, armor = found
    assert [len(some) for some in rows] == [1, 2, 3]
    assert rows[-1] == found
    for row, folder in ((dense, tiny_model), (wanda, out / "wanda"), (armor, out / "armor")):
        model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
        alone = evaluate(model, tokenizer, text, seq_len=32)
        assert row.perplexity == {"t": alone.perplexity}
    assert dense.linear_bytes == dense.dense_linear_bytes == wanda.dense_linear_bytes
    assert wanda.linear_bytes == inspect(out / "wanda")["totals"]["bytes"]
    data = json.loads((out / "results.json").read_text())
    assert [row["label"] for row in data["rows"]] == ["dense", "wanda", "armor"]
    assert data["rows"][2] == armor.to_dict()
    assert data["pruned"]["armor"]["seconds"] == armor.seconds > 0
    assert data["texts"] == {"t": str(text)}


def test_bos(tiny_bos_model: Path, text: Path, tmp_path: Path) -> None:
    """In calibration, in evaluation and in what is printed."""
    out = tmp_path / "out"
    arguments = ["compare", str(tiny_bos_model), "--methods", "wanda", "--calibration", str(text)]
    arguments += ["--ppl", str(text), "--out", str(out), "--samples", "4", "--seq-len", "32"]
    arguments += ["--device", "cpu", "--log", "off"]
    found, shown, weights = {}, {}, {}
    for bos in ("never", "auto", "always"):
        result = CliRunner().invoke(app, [*arguments, "--bos", bos])
        assert result.exception is None
        shown[bos] = result.stdout
        found[bos] = json.loads((out / "results.json").read_text())
        weights[bos] = (out / "wanda" / "model.safetensors").read_bytes()
    assert [found[bos]["bos"] for bos in found] == ["never", "always", "always"]
    assert found["auto"]["rows"] == found["always"]["rows"]  # known: it is what auto meant
    assert found["never"]["rows"][0] != found["always"]["rows"][0]
    assert weights["auto"] == weights["always"] != weights["never"]
    for bos, words in (("never", "no BOS"), ("always", "with BOS"), ("auto", "with BOS")):
        assert f"windows of 32 tokens, {words}" in " ".join(shown[bos].split())
    assert "in windows of 32 tokens, with BOS." in (out / "report.html").read_text()


def test_what_earlier_versions_made_stays_known(tmp_path: Path, tiny_model: Path) -> None:
    """First there was no choice of BOS, then its names were yes and no."""
    store = checkpoints.Checkpoints(tmp_path, str(tiny_model))
    config = PruneConfig(calibration=("a text",), bos="never")
    old = config.to_dict() | {"calibration": parse_source(config.calibration).identity()}
    del old["bos"]
    assert store._key(config) == key_of(model_id(tiny_model), old)
    config = PruneConfig(calibration=("a text",), bos="always")
    assert store._key(config) == key_of(model_id(tiny_model), {**old, "bos": "yes"})


def test_an_interrupted_comparison_goes_on(
    tiny_model: Path,
    text: Path,
    tmp_path: Path,
    done: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(row: list[Row]) -> None:
        if len(row) == 2:
            raise KeyboardInterrupt

    arguments = (str(tiny_model), settings(text), {"t": str(text)}, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        compare(*arguments, on_row=stop)
    done.clear()
    (tmp_path / "out" / "wanda" / "armor_run.json").unlink()  # damaged meanwhile
    with pytest.raises(ArmorError, match="exists already"):
        compare(*arguments)
    (tmp_path / "out" / "results.json").write_text("{cut")
    with pytest.raises(ArmorError, match="exists already"):
        compare(*arguments)


def test_gaps_without_baselines_and_beyond_floats() -> None:
    def row(label: str, method: str, value: float) -> Row:
        return Row(label, method, {"t": value}, 50, 100, 1.0)

    alone = with_gaps([row("dense", "dense", 2.0), row("armor", "armor", 3.0)])
    assert alone[1].gap_left is None
    values = {"dense": 2.0, "wanda": 9.0, "sparsegpt": 6.0, "armor": 3.0}
    rows = with_gaps([row(name, name, value) for name, value in values.items()])
    assert [found.gap_left for found in rows[1:]] == [{"t": 1.75}, {"t": 1.0}, {"t": 0.25}]
    assert rows[0].linear_bytes == 100
    rows = with_gaps([row("dense", "dense", 2.0), row("w", "wanda", inf), row("a", "armor", 3.0)])
    assert rows[2].gap_left == {"t": 0.0}


def test_text_names() -> None:
    assert text_names(["a/x.txt", "y.txt"]) == {"x": "a/x.txt", "y": "y.txt"}
    assert list(text_names(["a/x.txt", "b/x.txt", "y.txt"])) == ["a/x.txt", "b/x.txt", "y"]


def test_the_command(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["compare", str(tiny_model), "--calibration", str(text), "--ppl", str(text)]
    arguments += ["--methods", "wanda,armor:iterations=2", "--block-size", "4", "--samples", "4"]
    arguments += ["--seq-len", "32", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None
    for shown in ("dense", "wanda", "armor-iterations=2", "gap left"):
        assert shown in result.stdout
    assert (out / "report.html").is_file()
    bad = CliRunner().invoke(app, [*arguments, "--methods", "hope"])
    assert isinstance(bad.exception, ArmorError)


def test_two_comparisons_do_not_share_a_folder(
    tiny_model: Path, text: Path, tmp_path: Path, done: list[str]
) -> None:
    """The second does not touch what the first shares among its runs."""
    out = tmp_path / "out"
    kept = out / ".shared" / "0.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_text("of the first")
    with (
        Lock(out / ".lock", "", ""),
        pytest.raises(ArmorError, match=r"another comparison is working in .*choose another --out"),
    ):
        compare(str(tiny_model), settings(text), {"one": str(text)}, out, seq_len=32)
    assert kept.exists()
    assert done == []


def test_a_comparison_inside_the_model_is_refused(tiny_model: Path, text: Path) -> None:
    with pytest.raises(ArmorError, match="lies inside"):
        compare(str(tiny_model), settings(text), {"one": str(text)}, tiny_model / "compared")
    assert not (tiny_model / "compared").exists()
