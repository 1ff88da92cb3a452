"""The scripts that measure on a GPU, as far as that can be seen without one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from armor.factorize import exact

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    import common

    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert common.revision() == "unknown"


@pytest.mark.parametrize("every", [1, exact.REPORT_EVERY], ids=["on a CPU", "on a GPU"])
def test_an_iteration_takes_as_long_however_losses_are_reported(
    monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """On a clock on which every iteration takes two seconds."""
    import problems
    import solver
    import solver_gpu

    now = 0.0

    class Losses(exact._Losses):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self._every = every

        def append(self, loss: torch.Tensor) -> None:
            nonlocal now
            now += 2.0
            super().append(loss)

    monkeypatch.setattr(exact, "_Losses", Losses)
    monkeypatch.setattr(solver, "time", SimpleNamespace(perf_counter=lambda: now))
    inputs = solver_gpu.random_layer((32, 64), torch.device("cpu"))
    matrix = problems.as_matrix("m", inputs, "diag")
    row = solver_gpu.measure(matrix, 16, 24, torch.device("cpu"))
    assert row["ms_per_iteration"] == 2000.0
    assert 2.0 <= row["seconds_to_1_percent"] <= row["seconds_default"] == 120.0
