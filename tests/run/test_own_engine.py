"""An engine of one's own is its file and one line: here it is a few lines and one entry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from armor.engines.engine import Engine, Scheduler
from armor.engines.in_process import InProcess
from armor.engines.job import Handles, Job, Result, Tensors
from armor.engines.registry import ENGINES, Setup, open_engine
from armor.errors import ArmorError


def scaled(context: Any, factor: float, x: Tensors, several: dict[str, Tensors]) -> Result:
    """A job of a toy: sums, times a factor, of what it is given."""
    total = x["a"] + sum(tensors["a"] for tensors in several.values())
    return Result(f"{context} did it", ({"sum": factor * total},))


def setup(tmp_path: Path) -> Setup:
    """For a context that is a word."""
    return Setup(str.upper, lambda: "here", "cpu", None, lambda: 1, tmp_path, None)


@pytest.mark.parametrize("name", ["local", "toy"])
def test_jobs_through_the_registry(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_toy(given: Setup) -> Engine:
        return InProcess(given.make_context(given.device), given.scratch, 0)

    monkeypatch.setitem(ENGINES, "toy", open_toy)
    engine = open_engine(name, setup(tmp_path))
    handles = [engine.share({"a": torch.full((2,), float(n))}) for n in range(3)]
    job = Job(
        scaled,
        {"factor": 2.0},
        {"x": handles[0], "several": Handles(one=handles[1], two=handles[2])},
    )
    (done,) = Scheduler(engine).in_order([job])
    assert done.value == ("here did it" if name == "local" else "CPU did it")
    torch.testing.assert_close(engine.fetch(done.handles[0])["sum"], torch.full((2,), 6.0))
    engine.close()


def test_an_unknown_engine_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArmorError, match="unknown engine 'dask'; valid: local, ray"):
        open_engine("dask", setup(tmp_path))


def test_a_prune_on_an_engine_of_ones_own(
    tiny_model: Path,
    settings: Callable[..., Any],
    weights: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import armor

    done: list[str] = []

    class Counting(InProcess):
        """Notes what it does."""

        def submit(self, job: Job) -> int:
            done.append(job.function.__name__)
            return super().submit(job)

    monkeypatch.setitem(
        ENGINES, "counting", lambda given: Counting(given.here(), given.scratch, 10**9)
    )
    armor.prune(tiny_model, settings(), tmp_path / "one")
    assert not done
    armor.prune(tiny_model, settings(), tmp_path / "two", engine="counting")
    assert done.count("solve") == 14
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
