"""Workers share the parts of a step, and change no byte."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from armor.checkpoint.folder import unfinished_folder
from armor.engines.job import Job
from armor.engines.local import LocalPool
from armor.errors import ArmorError
from armor.tuning import team as module
from armor.tuning.config import TuneConfig
from armor.tuning.team import sensible_workers
from armor.tuning.tune import TuneProgress, tune

Tuning = Callable[..., TuneConfig]

#: Windows of the tiny model's text that make three parts: 2 x 64 + 22 of 32 tokens.
BATCH = 150


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name != "armor_run.json"
    }


@pytest.fixture
def config(tuning: Tuning) -> TuneConfig:
    return tuning(samples=160, steps=4, batch=BATCH)


@pytest.fixture
def whole(tiny_model: Path, pruned: Path, config: TuneConfig, tmp_path: Path) -> Path:
    """What one process makes."""
    curve = tune(pruned, tiny_model, config, tmp_path / "whole").curve
    assert curve.best == 4
    return tmp_path / "whole"


def test_two_processes_write_the_same_bytes(
    tiny_model: Path,
    pruned: Path,
    config: TuneConfig,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs: list[str] = []
    submit = LocalPool.submit

    def counted(pool: LocalPool, job: Job) -> int:
        jobs.append(job.function.__name__)
        return submit(pool, job)

    monkeypatch.setattr(LocalPool, "submit", counted)
    out = tmp_path / "out"
    tune(pruned, tiny_model, config, out, device="cpu", workers=2)
    assert contents(out) == contents(whole)
    # Three parts a step; ten held-out windows are one part, judged before and after each step.
    assert jobs.count("_gradients") == 3 * 4
    assert jobs.count("_divergence") == 5
    assert not unfinished_folder(out).exists()


def test_a_run_of_one_goes_on_with_two(
    tiny_model: Path, pruned: Path, config: TuneConfig, whole: Path, tmp_path: Path
) -> None:
    def stop(done: int, *_: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tune(pruned, tiny_model, config, out, progress=TuneProgress(stepped=stop))
    assert tune(pruned, tiny_model, config, out, workers=2).resumed == 2
    assert contents(out) == contents(whole)


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.slow
def test_ray_writes_the_same_bytes(
    tiny_model: Path, pruned: Path, config: TuneConfig, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    tune(pruned, tiny_model, config, out, device="cpu", engine="ray", workers=2)
    assert contents(out) == contents(whole)


def test_a_larger_step_is_another_one(
    tiny_model: Path, pruned: Path, tuning: Tuning, whole: Path, tmp_path: Path
) -> None:
    tune(pruned, tiny_model, tuning(samples=160, steps=4), tmp_path / "out")
    assert contents(tmp_path / "out") != contents(whole)


def test_nobody_waits_without_a_part_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 4)
    assert sensible_workers(None, "cuda", 1) == 1
    assert sensible_workers(None, "cuda", 3) == 3
    assert sensible_workers(None, "cuda", 8) == 4
    assert sensible_workers(2, "cuda", 8) == 2
    assert sensible_workers(None, "cuda:1", 8) == sensible_workers(None, "cpu", 8) == 1


def test_a_worker_that_fails_is_one_line(
    tiny_model: Path, pruned: Path, tuning: Tuning, tmp_path: Path
) -> None:
    config = tuning(samples=160, steps=20, batch=BATCH, step_size=1e30)
    with pytest.raises(ArmorError, match="smaller --step-size"):
        tune(pruned, tiny_model, config, tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mode", "where", "says"),
    [
        ("block", {"workers": 2}, "one process tunes block by block"),
        ("block", {"engine": "ray"}, "one process tunes block by block"),
        ("full", {"engine": "slurm"}, "unknown engine"),
        ("full", {"workers": 0}, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny_model: Path,
    pruned: Path,
    tuning: Tuning,
    tmp_path: Path,
    mode: str,
    where: dict[str, object],
    says: str,
) -> None:
    with pytest.raises(ArmorError, match=says):
        tune(pruned, tiny_model, tuning(mode=mode), tmp_path / "out", **where)


def test_batch_is_of_full_alone() -> None:
    with pytest.raises(ArmorError, match="batch"):
        TuneConfig(mode="block", batch=8)
    with pytest.raises(ArmorError, match="at least 1"):
        TuneConfig(batch=0)
    assert TuneConfig(batch=7).windows_of_step(512) == 7
    assert TuneConfig().windows_of_step(512) == 4
