"""Where a run computes: refusals and warnings about GPUs, without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from armor.config import PruneConfig
from armor.engines.in_process import InProcess
from armor.engines.job import Job, Result
from armor.engines.local import open_engine
from armor.engines.registry import Setup
from armor.errors import ArmorError
from armor.factorize.kernels import triton
from armor.run.placement import slow_patterns
from armor.run.plan import LayerPlan


def test_patterns_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [
        LayerPlan("a", (64, 64), 8),
        LayerPlan("b", (64, 64), 8, pattern="4:8"),
        LayerPlan("c", (64, 64), pattern="1:4", method="wanda"),
        LayerPlan("d", (64, 64), dense=True, pattern="50%"),
    ]
    monkeypatch.setattr(triton, "is_available", lambda: True)
    assert slow_patterns(plans, PruneConfig(), "cuda:0") == ["4:8"]
    assert slow_patterns(plans, PruneConfig(), "cpu") == []
    monkeypatch.setattr(triton, "is_available", lambda: False)
    assert slow_patterns(plans, PruneConfig(), "cuda") == ["2:4", "4:8"]


def setup(scratch: Path, device: str, workers: int | None) -> Setup:
    return Setup(
        make_context=str,
        here=lambda: "here",
        device=device,
        workers=workers,
        sensible_workers=lambda: 1,
        scratch=scratch,
        budget=1000,
    )


def test_a_worker_for_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (900, 1000))
    opened: list[list[str]] = []
    monkeypatch.setattr(
        "armor.engines.local.LocalPool", lambda _make, devices, _scratch: opened.append(devices)
    )
    open_engine(setup(tmp_path, "cuda", None))
    assert opened == [["cuda:0", "cuda:1"]]
    assert isinstance(open_engine(setup(tmp_path, "cuda:1", None)), InProcess)
    with pytest.raises(ArmorError, match=r"--workers 3 on 2 GPU\(s\): they would only take turns"):
        open_engine(setup(tmp_path, "cuda", 3))
    with pytest.raises(ArmorError, match=r"--workers 2 on 1 GPU"):
        open_engine(setup(tmp_path, "cuda:1", 2))


def on_meta(_context: object) -> Result:
    return Result("done", ({"x": torch.empty(100, device="meta")},))


def test_results_stay_on_the_device_while_there_is_room(tmp_path: Path) -> None:
    """Played on the meta device, as another one than the CPU."""
    engine = InProcess(None, tmp_path, budget=0, device_budget=1000)
    handles = []
    for _ in range(2):
        engine.submit(Job(on_meta, {}))
        handles += engine.wait().handles
        assert engine.fetch(handles[-1])["x"].is_meta
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):  # moves to the CPU
        engine.share({"x": torch.empty(100, device="meta")})
    engine.drop(handles[0])
    assert engine.fetch(engine.share({"x": torch.empty(100, device="meta")}))["x"].is_meta
    # The CPU's own room is another one: without any, files.
    assert not engine.fetch(engine.share({"x": torch.zeros(3)}))["x"].any()
    assert len(list(tmp_path.iterdir())) == 1
