"""armor reproduce, offline: local twins of every text and task, interrupted and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from armor.cli import app
from armor.compare import checkpoints
from armor.errors import ArmorError
from armor.evaluation import harness

METHODS = ["sparsegpt", "armor-paper:iterations=2", "armor:iterations=2"]


@pytest.fixture
def arguments(
    tiny_model: Path, tmp_path: Path, write_task: Callable[..., Path], sums: list[dict[str, Any]]
) -> list[str]:
    pytest.importorskip("lm_eval")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {i}: the square of {i} is {i * i}." for i in range(200)))
    tasks = write_task("mmlu", sums)
    found = ["reproduce", "paper", "--model", str(tiny_model), "--out", str(tmp_path / "out")]
    found += ["--calibration", str(text), "--ppl", f"wikitext2={text}", "--task-dir", str(tasks)]
    found += ["--tasks", "mmlu:1", "--methods", ",".join(METHODS), "--samples", "4"]
    return [*found, "--seq-len", "32", "--block-size", "4", "--published", "Qwen2.5-7B"]


def test_the_page_is_filled_and_a_second_run_adds_what_is_missing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = harness.run_task
    ran: list[str] = []

    def counted(tasks: Any, spec: Any, *rest: Any) -> Any:
        ran.append(spec.name)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run(tasks, spec, *rest)

    monkeypatch.setattr(harness, "run_task", counted)
    assert CliRunner().invoke(app, arguments).exit_code == 130
    out = tmp_path / "out"
    page = (out / "reproduction.md").read_text()
    assert page.count("... / ") == 2  # tasks of two models are missing
    monkeypatch.setattr(checkpoints, "prune", None)
    assert CliRunner().invoke(app, arguments).exception is None
    assert ran == ["mmlu"] * 5
    page = (out / "reproduction.md").read_text()
    assert "..." not in page
    data = json.loads((out / "reproduction.json").read_text())
    labels = ["dense", *(method.replace(":", "-") for method in METHODS)]
    assert [row["label"] for row in data["rows"]] == list(data["tasks"]) == labels
    value = data["tasks"]["dense"][0]["value"]
    assert f"| dense | {100 * value:.2f} / 74.19 |" in page
    assert f"| sparsegpt | {data['rows'][1]['perplexity']['wikitext2']:.3f} / - |" in page
    assert "- perplexity: windows of 32 tokens, no BOS" in page
    assert (out / "report.html").is_file()


def test_no_window_begins_with_bos_unless_asked_for(tiny_bos_model: Path, tmp_path: Path) -> None:
    """The papers' protocol, also where the tokenizer adds BOS."""
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("a text to be read " * 100)
    command = ["reproduce", "paper", "--model", str(tiny_bos_model), "--out", str(out)]
    command += ["--calibration", str(text), "--ppl", str(text), "--tasks", "none"]
    command += ["--methods", "wanda", "--samples", "4", "--seq-len", "32", "--device", "cpu"]
    for more, words in (([], "no BOS"), (["--bos", "auto"], "with BOS")):
        assert CliRunner().invoke(app, [*command, *more]).exception is None
        page = (out / "reproduction.md").read_text()
        assert f"- perplexity: windows of 32 tokens, {words}" in page


def test_refusals(arguments: list[str], tmp_path: Path) -> None:
    for more, message in (
        (["--seq-len", "129"], "--seq-len 129 is longer than the model's context 128"),
        (["--bos", "always"], "has no BOS token"),
        (["--published", "GPT-2"], "no figures of 'GPT-2'"),
        (["--tasks", "zzz"], "unknown task 'zzz'"),
        (["--ppl", "other=" + str(tmp_path / "absent")], "cannot read"),
        (["--ppl", "wikitext2=" + str(tmp_path / "text.txt")], "one name"),
        (["--methods", "hope"], "unknown method 'hope'"),
        (["--model", str(tmp_path / "absent")], "no such folder"),
        (["--ppl", "c4"], "cannot load hf:allenai/c4:en"),
    ):
        error = CliRunner().invoke(app, [*arguments, *more]).exception
        assert isinstance(error, ArmorError), more
        assert message in str(error)
        assert "\n" not in str(error)
    other = [word if word != "paper" else "novel" for word in arguments]
    assert "valid: paper" in str(CliRunner().invoke(app, other).exception)
