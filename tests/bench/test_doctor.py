"""armor doctor: what is right passes, what is wrong is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from armor.bench import doctor
from armor.cli import app
from armor.runtime import Status
from armor.runtime.backend import Verdict
from armor.runtime.registry import load

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layers of a real model, nothing interpreted."""
    compiled = [each for each in doctor.backends() if each.name != "triton"]
    monkeypatch.setattr(doctor, "backends", lambda: compiled)
    monkeypatch.setattr(doctor, "SWEEPS", [each for each in doctor.SWEEPS if each.name != "triton"])
    monkeypatch.setattr(doctor, "SMALL", doctor.SMALL[:1])
    monkeypatch.setattr(doctor, "REAL", (doctor.Shape("64x64", 64, 64, 16),))


def test_what_is_here_is_right(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    done = CliRunner().invoke(app, ["doctor", "--device", "cpu", "--json", str(file)])
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert found["torch"] == torch.__version__
    verdicts = {check["what"]: check["verdict"] for check in found["checks"]}
    assert verdicts["runtime cpu"] == verdicts["solver numba"] == "ok"
    assert verdicts["speed cpu"] == "against dense"
    assert "no NVIDIA GPU" in done.output or torch.cuda.is_available()


@pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed")
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # interpreted
def test_mlps_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = load("triton")
    monkeypatch.setattr(doctor, "backends", lambda: [Status("triton", True, "")])
    monkeypatch.setattr(doctor, "MLPS", ((64, 96, 16), (64, 80, 16)))
    checks = list(doctor.check_mlps(CPU))
    assert [check.verdict for check in checks] == ["ok", "ok"]
    right = triton.matmul_gated
    monkeypatch.setattr(triton, "matmul_gated", lambda x, gated: right(x, gated) * 1.1)
    (check,) = doctor.check_mlps(CPU, quick=True)
    assert check.what == "mlp triton"
    assert check.failed
    monkeypatch.setattr(triton, "takes_gated", lambda _: Verdict("not these"))
    (check,) = doctor.check_mlps(CPU, quick=True)
    assert check.verdict == "run layer by layer"


def test_a_wrong_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = load("cpu")
    right = cpu.matmul
    monkeypatch.setattr(cpu, "matmul", lambda x, call: right(x, call) * 1.1)
    failed = {check.what for check in doctor.check_runtime(CPU, quick=True) if check.failed}
    assert failed == {"runtime cpu"}

    def broken(x: torch.Tensor, call: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: misaligned address\nmore")

    monkeypatch.setattr(cpu, "matmul", broken)
    first = next(check for check in doctor.check_runtime(CPU, quick=True) if check.failed)
    assert first.verdict == "wrong: CUDA error: misaligned address"
    done = CliRunner().invoke(app, ["doctor", "--device", "cpu"])
    assert done.exit_code == 1
    assert "ARMOR_BACKEND=reference" in done.output
