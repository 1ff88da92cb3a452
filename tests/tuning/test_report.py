"""The report and inspect show what a tuning has come to; a damaged record shows nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import armor
from armor.checkpoint.tuning import Curve, TuningRecord
from armor.report import collect, write_report
from armor.tuning.config import TuneConfig


def test_the_curve_is_shown(
    tiny_model: Path, pruned: Path, tuning: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    curve = armor.tune(pruned, tiny_model, tuning(), out).curve
    write_report(collect(out), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"after {curve.best} steps: {curve.after:.4f} nats a token" in page
    assert f"before tuning {curve.before:.4f}, on held-out windows" in page
    assert "at or below the baselines, before tuning" in page
    found = armor.inspect(out)["tuning"]
    assert found["before"] == curve.before
    assert found["after"] == curve.after
    assert (found["kind"], found["best_step"], found["steps"]) == ("full", curve.best, 20)
    assert armor.inspect(pruned)["tuning"] is None


def test_a_damaged_record_is_none(
    tiny_model: Path, pruned: Path, tuning: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    sound = {"kind": "full", "curve": Curve({0: 2.0, 5: 1.0}, {5: 1.5}).to_dict(), "seconds": 3.0}
    read = TuningRecord.read(json.loads(json.dumps(sound)))
    assert read is not None
    assert (read.curve.before, read.curve.after, read.curve.best) == (2.0, 1.0, 5)
    for damaged in (
        None,
        [],
        {},
        {**sound, "kind": 3},
        {**sound, "curve": None},
        {**sound, "curve": {"held_out": {"5": 1.0}, "trained": {}}},
        {**sound, "curve": {"held_out": {"x": 1.0}, "trained": {}}},
        {**sound, "curve": {"held_out": {"0": "many"}, "trained": {}}},
    ):
        assert TuningRecord.read(damaged) is None
