"""The events of a real run, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from armor.cli import app


def prune(model: Path, text: Path, out: Path, *options: object) -> Any:
    few = ["--samples", 4, "--seq-len", 32, "--iterations", 2, "--block-size", 4]
    call = ["prune", model, "--calibration", text, "--out", out, *few, *options]
    return CliRunner().invoke(app, list(map(str, call)))


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_run_leaves_its_events_beside_the_checkpoint(
    tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    result = prune(tiny_model, text, tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = events(tmp_path / "out.events.jsonl")
    assert found[0]["kind"] == "run_started"
    assert found[0]["config"]["calibration"] == str(text)
    assert found[-1]["kind"] == "run_finished"
    layers = {event["layer"]: event for event in found if event["kind"] == "layer_finished"}
    record = json.loads((tmp_path / "out" / "armor_run.json").read_text())["layers"]
    assert len(layers) == 14
    for name, event in layers.items():
        assert {key: event[key] for key in record[name]} == record[name]


def test_bad_input_leaves_no_log_and_off_means_off(
    tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    assert prune(tmp_path / "absent", text, tmp_path / "out").exit_code != 0
    assert list(tmp_path.iterdir()) == []
    assert prune(tiny_model, text, tmp_path / "out", "--log", "off").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_named_log_also_tells_of_failures(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert prune(tmp_path / "absent", text, tmp_path / "out", "--log", log).exit_code != 0
    assert [event["kind"] for event in events(log)] == ["run_started", "run_failed"]
    result = prune(tiny_model, text, tmp_path / "out", "--log", tmp_path / "no" / "log.jsonl")
    assert "its folder does not exist" in str(result.exception)


def test_quiet_unless_asked(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="no tensorboard")
    assert prune(tiny_model, text, tmp_path / "quiet").stderr == ""
    board = tmp_path / "board"
    result = prune(tiny_model, text, tmp_path / "loud", "-v", "--tensorboard", board)
    assert result.stderr.count("of NoWag-P's") == 14
    assert "finished in" in result.stderr
    assert [path.name for path in board.iterdir()] == ["loud"]
