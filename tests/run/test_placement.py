"""Where a run computes: refusals and warnings about GPUs, without one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import armor
from armor.config import PruneConfig
from armor.engines.in_process import InProcess
from armor.engines.job import Job, Result
from armor.engines.local import open_engine
from armor.engines.registry import Setup
from armor.errors import ArmorError
from armor.factorize.kernels import triton
from armor.run import prune as prune_module
from armor.run import worker as worker_module
from armor.run.placement import slow_patterns
from armor.run.plan import LayerPlan
from armor.run.worker import Worker


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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of a kind, which nothing can compute on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_run_warns_of_slow_patterns_and_knows_the_kind_of_its_gpu(
    device: str,
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By which another of the same kind may go on with it."""
    manifests: list[dict[str, Any]] = []
    warnings: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("armor"), "warning", lambda form, *parts: warnings.append(form % parts)
    )

    def store(_out: Path, manifest: dict[str, Any], _fresh: bool) -> None:
        manifests.append(manifest)
        raise KeyboardInterrupt

    monkeypatch.setattr(prune_module, "Store", store)
    with pytest.raises(KeyboardInterrupt):
        armor.prune(tiny_model, settings(pattern="1:4"), tmp_path / "out", device=device)
    assert [manifest["device"] for manifest in manifests] == ["cuda (H100)"]
    (warning,) = warnings
    assert warning.startswith("the solver has no GPU kernel for 1:4 ")


@pytest.mark.parametrize(("free", "room"), [(0, 2**30), (2**30, 2**28), (40 * 2**30, 10 * 2**30)])
def test_inputs_are_kept_in_a_share_of_the_gpu(
    free: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of what is free there; on the CPU a fixed size. Tensors of meta take no memory."""
    monkeypatch.setattr(worker_module, "free_on_device", lambda _: free)
    for size, is_kept in ((room, True), (room + 1, False)):
        worker = Worker(None, None, "cuda:0" if free else "cpu")  # type: ignore[arg-type]
        inputs = torch.empty(size, dtype=torch.uint8, device="meta")
        worker.keep_dense_inputs(0, 0, {"a": [inputs]})
        found = worker.take_dense_inputs(0, 0, "a")
        assert (found is not None) == is_kept


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
