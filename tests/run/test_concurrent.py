"""Two runs into one folder, on file systems with and without ``flock``."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import armor
from armor.config import PruneConfig

Settings = Callable[..., PruneConfig]
Weights = Callable[[Path], dict[str, bytes]]

#: What ``flock`` does, as Python that replaces it.
FLOCK = {
    "working": "",
    "raising": "def flock(*_): raise OSError(38, os.strerror(38))\nfcntl.flock = flock",
    "doing nothing": "fcntl.flock = lambda *_: None",
}
#: ``armor prune``, which waits at its first layer for a file, if the environment names one.
RUN = """
import os, sys, time
from pathlib import Path
{flock}
if __name__ == "__main__":
    from armor.run.store import Store
    save, gate = Store.save, os.environ.get("GATE")
    def waiting(*args):
        save(*args)
        if gate:
            Path(gate + ".reached").touch()
        while gate and not Path(gate).exists():
            time.sleep(0.02)
    Store.save = waiting
    from armor.cli import main
    main()
"""


@pytest.fixture
def start(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.Popen[str]]:
    """Starts ``armor prune`` into one and the same folder, by the kind of flock and workers."""

    def run(flock: str, workers: int, gate: Path | None = None) -> subprocess.Popen[str]:
        pytest.importorskip("fcntl")
        script = tmp_path / "run.py"
        patch = f"import fcntl\n{FLOCK[flock]}" if FLOCK[flock] else ""
        script.write_text(RUN.format(flock=patch))
        monkeypatch.setenv("GATE", "" if gate is None else str(gate))
        what = f"prune {tiny_model} --calibration {text} --out {tmp_path / 'out'} --log off"
        how = f"--samples 24 --seq-len 16 --iterations 2 --block-size 4 --workers {workers}"
        return subprocess.Popen(
            [sys.executable, str(script), *what.split(), *how.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def reached(gate: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run has finished its first layer."""
    until = time.monotonic() + 400
    while not gate.with_name(f"{gate.name}.reached").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


CASES = [
    pytest.param("raising", 2),
    *(
        pytest.param(flock, workers, marks=pytest.mark.slow)
        for flock in FLOCK
        for workers in (1, 2)
        if (flock, workers) != ("raising", 2)
    ),
]


@pytest.mark.parametrize(("flock", "workers"), CASES)
def test_one_finishes_and_the_other_says_who_holds_it(
    start: Callable[..., subprocess.Popen[str]],
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    flock: str,
    workers: int,
) -> None:
    gate = tmp_path / "gate"
    first = start(flock, workers, gate)
    reached(gate, first)
    second = start(flock, workers)
    _, said = second.communicate(timeout=400)
    assert second.returncode == 2
    assert f"another run is working in {tmp_path / '.out.run'} (process {first.pid} on" in said
    assert "Traceback" not in said
    gate.touch()
    _, said = first.communicate(timeout=400)
    assert first.returncode == 0, said
    armor.prune(tiny_model, settings(), tmp_path / "alone")
    assert weights(tmp_path / "out") == weights(tmp_path / "alone")
    assert not (tmp_path / ".out.run").exists()


@pytest.mark.parametrize(("flock", "workers"), CASES)
def test_after_a_killed_run_the_next_takes_over(
    start: Callable[..., subprocess.Popen[str]],
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    flock: str,
    workers: int,
) -> None:
    gate = tmp_path / "gate"
    first = start(flock, workers, gate)
    reached(gate, first)
    first.kill()
    first.communicate()
    second = start(flock, workers)
    said, noted = second.communicate(timeout=400)
    assert second.returncode == 0, noted
    assert f"process {first.pid} on" in noted
    assert "taking over" in noted
    assert "14 layers" in said
    armor.prune(tiny_model, settings(), tmp_path / "alone")
    assert weights(tmp_path / "out") == weights(tmp_path / "alone")
    assert not (tmp_path / ".out.run").exists()
