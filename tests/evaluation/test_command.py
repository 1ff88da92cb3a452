"""``armor eval`` on a real folder, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from armor.cli import evaluate as command
from armor.errors import ArmorError
from armor.evaluation import harness, measure
from armor.text.papers import PAPER_TEXTS


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


def test_finished_measurements_are_not_repeated(
    app: typer.Typer,
    tiny_model: Path,
    write_task: Callable[..., Path],
    sums: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lm_eval")
    write_task("low", sums[:6])
    tasks = str(write_task("high", sums[6:]))
    text, file = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text("a text to be read " * 40)
    arguments = [str(tiny_model), "--ppl", str(text), "--task-dir", tasks, "--json", str(file)]
    arguments += ["--device", "cpu"]
    run = harness.run_task
    ran: list[str] = []

    def counted(task_list: Any, spec: Any, *rest: Any) -> Any:
        ran.append(spec.name)
        if spec.name == "high" and len(ran) == 2:
            raise KeyboardInterrupt
        return run(task_list, spec, *rest)

    monkeypatch.setattr(harness, "run_task", counted)
    first = CliRunner().invoke(app, [*arguments, "--tasks", "low,high"])
    assert first.exit_code == 130
    assert [row["task"] for row in json.loads(file.read_text())["tasks"]] == ["low"]
    second = CliRunner().invoke(app, [*arguments, "--tasks", "low,high"])
    assert second.exception is None
    assert ran == ["low", "high", "high"]
    assert "2 known from" in " ".join(second.stdout.split())
    assert "low: " in second.stderr
    found = json.loads(file.read_text())
    assert [row["task"] for row in found["tasks"]] == ["low", "high"]
    monkeypatch.setattr(measure, "load_model", None)
    third = CliRunner().invoke(app, [*arguments, "--tasks", "high,low"])
    assert third.exception is None  # nothing to measure: the model is not even loaded
    assert "3 known from" in " ".join(third.stdout.split())
    assert CliRunner().invoke(app, [*arguments, "--fresh"]).exception is not None


def test_bos_is_shown_and_kept_apart(
    app: typer.Typer, tiny_model: Path, tiny_bos_model: Path, tmp_path: Path
) -> None:
    text, file = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text("a text to be read " * 40)
    arguments = [str(tiny_bos_model), "--ppl", str(text), "--seq-len", "32", "--device", "cpu"]
    shown = {}
    for bos in ("never", "yes", "auto"):
        result = CliRunner().invoke(app, [*arguments, "--json", str(file), "--bos", bos])
        assert result.exception is None
        shown[bos] = result.stdout
    assert "32 with BOS" in shown["yes"]  # the name of always in earlier versions
    assert "32 no BOS" in shown["never"]
    assert "1 known from" in " ".join(shown["auto"].split())  # the same as yes
    default = CliRunner().invoke(app, [*arguments, "--json", str(file)])
    assert "1 known from" in " ".join(default.stdout.split())  # auto
    rows = json.loads(file.read_text())["perplexity"]
    assert sorted(row["bos"] for row in rows) == [False, True]
    assert rows[0]["perplexity"] != rows[1]["perplexity"]
    assert "has no BOS token" in refused(app, str(tiny_model), *arguments[1:], "--bos", "always")
    assert "unknown --bos 'of'" in refused(app, *arguments, "--bos", "of")


def test_a_papers_text_by_name(
    app: typer.Typer, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    rows = [{"text": f"document {number} of them"} for number in range(30)]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = replace(PAPER_TEXTS["c4"], dataset=f"hf:{tmp_path}", most_documents=20, windows=5)
    monkeypatch.setitem(PAPER_TEXTS, "c4", small)
    file = tmp_path / "out.json"
    arguments = [str(tiny_model), "--ppl", "c4", "--seq-len", "32", "--json", str(file)]
    assert CliRunner().invoke(app, [*arguments, "--device", "cpu"]).exception is None
    row = json.loads(file.read_text())["perplexity"][0]
    assert row["text_bytes"] == len(" ".join(row["text"] for row in rows[:20]))
    assert (row["source"], row["windows"], row["tokens"]) == ("c4", 5, 5 * 31)


def test_refusals(app: typer.Typer, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    assert "cannot read" in refused(app, "model", "--ppl", str(text))
    text.write_text("a text")
    assert "nothing to evaluate" in refused(app, "model")
    assert "no such folder" in refused(app, str(tmp_path / "no"), "--ppl", str(text))
    (tmp_path / ".half.run").mkdir()
    half = refused(app, str(tmp_path / "half"), "--ppl", str(text))
    assert "is not finished: give the same armor prune command again" in half
    assert "unknown device 'tpu'" in refused(app, "m", "--ppl", str(text), "--device", "tpu")
    assert "name those to run" in refused(app, "m", "--ppl", str(text), "--task-dir", "tasks")
    missing = str(tmp_path / "no" / "out.json")
    assert "its folder does not exist" in refused(app, "m", "--ppl", str(text), "--json", missing)
