"""Held-out errors over fitted ones: of a layer, of a run, and what is said of it at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.generalisation import calibration_tokens, error_ratio, generalisation
from armor.checkpoint.jsonfile import write_json
from armor.checkpoint.records import LayerRecord
from armor.cli.prune import _print_summary
from armor.run.prune import PruneResult


def record(fitted: float | None, held_out: float | None) -> LayerRecord:
    return LayerRecord.read({"fitted_error": fitted, "held_out_error": held_out})


def test_the_ratio_by_hand() -> None:
    layers = [record(0.1, 0.2), record(0.2, 0.1), record(0.1, 0.8)]
    layers += [record(0.1, 0.0), record(0.0, 0.1), record(None, 0.1), record(0.1, None)]
    expected = [2.0, 0.5, 8.0, 0.0, None, None, None]
    assert [error_ratio(layer) for layer in layers] == pytest.approx(expected)
    assert generalisation(layers) == pytest.approx(2.0)  # the third root of 2 * 0.5 * 8
    assert generalisation(layers[3:]) is generalisation([]) is None


def test_the_tokens_that_a_run_was_given() -> None:
    assert calibration_tokens({"samples": 128, "seq_len": 2048}) == 262_144
    for config in ({}, {"samples": 3}, {"samples": 3, "seq_len": None}, {"samples": "3"}):
        assert calibration_tokens(config) is None


@pytest.mark.parametrize(
    ("held_out", "more"),
    [
        (None, []),
        (0.15, ["generalisation held-out error 1.50 times that on what was fitted"]),
        (
            0.2,
            [
                "generalisation held-out error 2.00 times that on what was fitted",
                "warning        more text than 4,096 tokens would help: --samples, --seq-len",
            ],
        ),
    ],
)
def test_the_end_of_armor_prune(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    held_out: float | None,
    more: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # for the folder's name
    config: dict[str, Any] = {"samples": 16, "seq_len": 256}
    write_json(tmp_path / RUN_FILE, {"config": config})
    layers = {"a": record(0.1, held_out), "b": record(None, None)}
    _print_summary(PruneResult(tmp_path, [], layers, 1.0), None)
    assert capsys.readouterr().out.splitlines() == ["2 layers in 1.0 s", *more, f"wrote {tmp_path}"]
