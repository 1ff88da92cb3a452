"""The TensorBoard export, read back with TensorBoard's own reader."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from armor.checkpoint.records import LayerRecord
from armor.errors import ArmorError
from armor.events import Recorder, TensorBoard
from armor.run.plan import LayerPlan

RECORD = LayerRecord((4, 8), 4, 0.02, 0.1, 0.05, True, [0.1, 0.02], 1.5, "", [0.5, 1.25])


def test_scalars(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard"
    )
    recorder = Recorder([TensorBoard(tmp_path, "out")])
    with recorder.run("compare"):
        for label in ("one", "two"):
            progress = recorder.progress(label)
            progress.planned([LayerPlan("a", (4, 8), 4)])
            progress.finished("a", RECORD)
        recorder.emit("measured", label="two", text="stories", perplexity=2.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out", "two"]
    found = accumulator.EventAccumulator(str(tmp_path / "two"))
    found.Reload()
    curve = found.Scalars("loss/a")
    assert [event.value for event in curve] == pytest.approx([0.1, 0.02])
    assert [event.step for event in curve] == [0, 1]
    assert curve[1].wall_time - curve[0].wall_time == pytest.approx(0.75, abs=1e-3)
    (ratio,) = found.Scalars("layers/loss_over_nowag")
    assert ratio.value == pytest.approx(0.2)
    assert ratio.step == 1
    assert found.Scalars("layers/loss_over_sparsegpt")[0].value == pytest.approx(0.4)
    assert found.Scalars("perplexity/stories")[0].value == 2.5


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ArmorError, match=r"pip install 'armor-prune\[tensorboard\]'"):
        TensorBoard(tmp_path / "board", "out")
    assert not (tmp_path / "board").exists()
