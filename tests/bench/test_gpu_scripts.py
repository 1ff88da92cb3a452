"""The scripts that measure on a GPU, as far as that can be seen without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from armor.bench.layers import Measured
from armor.bench.mlp import MlpSpeed
from armor.bench.roofline import Cost, Peaks
from armor.bench.shapes import Shape
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
    assert common.revision.__wrapped__() == "unknown"


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


FAKE_PYTHON = """#!/bin/sh
[ "$1" != -c ] || { echo "a-GPU" && exit; }
echo "ran $*"
[ "$3" != doctor ] || echo "$VERDICT" > "$5"
case "$*" in *"$BAD"*) exit ${STATUS:-1} ;; esac
"""
FAKE_TIMEOUT = """#!/bin/sh
echo "limit $3"
shift 3
exec "$@"
"""
ALL = ["doctor", "tune", "solver_gpu", "runtime", "model_gpu", "prune_gpu"]


@pytest.fixture
def gpu_sh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run a copy of gpu.sh, with stand-ins for Python and `timeout`, from `tmp_path`."""
    script = tmp_path / "a copy" / "benchmarks" / "gpu.sh"
    tiles = tmp_path / "a copy" / "src" / "armor" / "runtime" / "triton" / "tiles.json"
    for file in (script, tiles, tmp_path / "bin" / "timeout"):
        file.parent.mkdir(parents=True)
    script.write_text((BENCHMARKS / "gpu.sh").read_text())
    tiles.write_text("{}")
    for name, text in (("python", FAKE_PYTHON), ("timeout", FAKE_TIMEOUT)):
        file = tmp_path / "bin" / name
        file.write_text(text)
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYTHON", "bin/python")  # as FOLDER, from where the caller stands

    def run(*given: str, **environment: str) -> tuple[int, list[str], str]:
        """The exit status, which scripts were run in which order, and all that was said."""
        done = subprocess.run(
            ["sh", str(script), *given],
            cwd=tmp_path,
            env={**os.environ, "BAD": "nothing", "VERDICT": '"verdict": "ok"', **environment},
            capture_output=True,
            text=True,
        )
        said = [line.split() for line in done.stdout.splitlines() if line.startswith("ran ")]
        ran = ["doctor" if "doctor" in words else words[1] for words in said]
        return done.returncode, [name.removesuffix(".py") for name in ran], done.stdout

    return run


def test_the_shell_script_is_one_and_gives_options_that_there_are() -> None:
    done = subprocess.run(["sh", "-n", str(BENCHMARKS / "gpu.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    common = (BENCHMARKS / "common.py").read_text(encoding="utf-8")
    calls = re.findall(
        r"\b(\w+\.py)\b([^|&\n]*)", (BENCHMARKS / "gpu.sh").read_text(encoding="utf-8")
    )
    assert calls
    for script, given in calls:
        source = (BENCHMARKS / script).read_text(encoding="utf-8") + common
        for option in re.findall(r"--[\w-]+", given):
            assert f'"{option}"' in source, (script, option)


def test_all_steps_end_within_25_minutes(gpu_sh: Callable[..., Any], tmp_path: Path) -> None:
    status, ran, said = gpu_sh("found/here")
    assert (status, ran) == (0, ALL)
    limits = [int(line.split()[1]) for line in said.splitlines() if line.startswith("limit ")]
    assert len(limits) == len(ALL)
    assert sum(limits) + 10 * len(limits) < 25 * 60  # 10 s until one is killed
    assert (tmp_path / "found" / "here" / "tiles.json").exists()
    assert f"--out {tmp_path / 'found' / 'here'}" in said
    header = (BENCHMARKS / "gpu.sh").read_text().partition("set -u")[0]
    for name, limit in zip(
        ("doctor", "tilings", "solver", "runtime", "model", "prune"), limits, strict=True
    ):
        assert f"{name} {limit}" in header.replace("\n#", "")


def test_steps_are_chosen(gpu_sh: Callable[..., Any], tmp_path: Path) -> None:
    status, ran, said = gpu_sh(str(tmp_path / "out"), "prune", "doctor")
    assert (status, ran) == (0, ["prune_gpu", "doctor"])
    assert gpu_sh("out", "doctor", "slover")[:2] == (2, [])
    status, ran, said = gpu_sh("", "solver")
    assert ran == ["solver_gpu"]
    assert f"done: {tmp_path / 'a copy' / 'benchmarks' / 'results' / 'a-GPU'}" in said


@pytest.mark.parametrize(("status", "why"), [("1", "failed"), ("124", "stopped after 290 seconds")])
def test_a_failing_step_stops_no_other(gpu_sh: Callable[..., Any], status: str, why: str) -> None:
    code, ran, said = gpu_sh("out", BAD="solver_gpu", STATUS=status)
    assert (code, ran) == (1, ALL)
    assert f"solver: {why}" in said
    assert said.rstrip().endswith("not all of: solver")


def test_only_wrong_numbers_stop(gpu_sh: Callable[..., Any]) -> None:
    wrong = {"VERDICT": '"verdict": "wrong"', "BAD": "doctor"}
    assert gpu_sh("out", **wrong)[:2] == (1, ["doctor"])
    fault = {"VERDICT": '"verdict": "wrong: OutOfResources: registers"', "BAD": "doctor"}
    assert len(gpu_sh("out", **fault)[1]) > 1
    assert gpu_sh("out", BAD="doctor", VERDICT="")[:2] == (1, ALL)  # it crashed


def test_all_blocks_of_a_model_follow_from_some() -> None:
    import model_gpu

    rows = [
        {"contender": "ARMOR", "rows": 1, "blocks": 2.0, "head": 1.0},
        {"contender": "ARMOR", "rows": 16, "blocks": 4.0, "head": 1.0},
        {"contender": "dense", "rows": 1, "blocks": 3.0, "head": 1.0},
        {"contender": "dense", "rows": 16, "blocks": 4.0, "head": 1.0},
    ]
    assert list(model_gpu.speedups(rows, 8).values()) == [13 / 9, 1.0]


def test_a_part_that_fails_is_named_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    import common

    failures = common.Failures()
    with failures.of("one"):
        raise RuntimeError("no kernel")
    with failures.of("other"):
        pass
    assert failures.found == {"one": "RuntimeError: no kernel"}
    assert "no kernel" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"failed: one$"):
        failures.end()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["model_gpu", "prune_gpu"])
def test_runs_small_without_a_gpu(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--small", "--out", str(tmp_path)]
    if script == "model_gpu":
        command += ["--layers", "1", "--rows", "1", "40", "--prompt", "8", "--tokens", "3"]
        command += ["--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / f"{script}.json").read_text())
    if script == "model_gpu":
        assert [row["rows"] for row in found["blocks"]] == [1, 40, 1, 40]
        assert [speed["contender"] for speed in found["generate"]] == ["ARMOR", "dense"]
        assert found["failures"] == {}
    else:
        assert len(found["finished_at"]) == len(found["seconds_by_layer"]) == 14


def test_runtime_measures_wide_layers_and_goes_on_where_one_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a GPU that is not there: what is asked for, in which order, and what is written."""
    import runtime

    asked: list[tuple[Any, ...]] = []
    chosen: list[torch.device] = []

    def measure_shape(shape: Shape, batches: list[int], *_: Any) -> list[Measured]:
        asked.append((shape[1], shape[2], shape.block, *batches))
        if shape.name == "llama-3-8b k_proj":
            raise RuntimeError("no kernel")
        size = 2 * shape[1] * shape[2]
        return [
            Measured(who, shape, batch, 1.0, size, None, Cost(1, 1), "triton")
            for who in ("dense", "ARMOR")
            for batch in batches
        ]

    def measure_mlp(width: int, inner: int, block: int, rows: list[int], *_: Any) -> list[MlpSpeed]:
        asked.append((width, inner, block, *rows))
        return [MlpSpeed(width, inner, block, row, 2.0, 2.0, 1.0, True) for row in rows]

    monkeypatch.setattr(runtime, "measure_shape", measure_shape)
    monkeypatch.setattr(runtime, "measure_mlp", measure_mlp)
    monkeypatch.setattr(runtime, "measure_peaks", lambda *_: Peaks(1.0, 1.0))
    monkeypatch.setattr(runtime.report, "machine", lambda _: {"name": "a GPU"})
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    options = ["runtime.py", "--device", "cuda:1", "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", options)
    with pytest.raises(SystemExit, match=r"failed: llama-3-8b k_proj, torch.bfloat16$"):
        runtime.main()
    assert chosen == [torch.device("cuda:1")]
    assert asked == [
        (4096, 11008, 128, 1, 16, 2048, 4096, 8192),
        (4096, 14336, 128, 1, 16, 2048, 4096, 8192),
        (11008, 4096, 128, 1, 16, 2048),
        (4096, 11008, 128, 1, 16, 2048),
        (4096, 4096, 128, 1, 16, 2048),
        (1024, 4096, 64, 1, 16, 2048),
        (14336, 4096, 128, 1, 16, 2048),
        (4096, 14336, 128, 1, 16, 2048),
    ]
    found = json.loads((tmp_path / "runtime-gpu.json").read_text())
    assert len(found["runs"][0]["layers"]) == 5 * 2 * 3
    assert list(found["failures"]) == ["llama-3-8b k_proj, torch.bfloat16"]
    assert found["claims"]["all of these MLPs ran as one"] is True
    assert (tmp_path / "runtime-gpu.png").exists()
