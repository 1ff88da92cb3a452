"""Threads write a GPU's activations and hash its moments: played on the CPU, with errors."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import armor
from armor.checkpoint.folder import unfinished_folder
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run import pipeline, store, unfinished
from armor.run.prune import Progress
from armor.run.saving import Saving, to_host

Settings = Callable[..., PruneConfig]
Weights = Callable[[Path], dict[str, bytes]]
SECONDS = 120  # to wait for what must happen


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations and moments count as a GPU's."""
    for module in (pipeline, store):
        monkeypatch.setattr(module, "is_on_gpu", lambda _: True)


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """Has something done before each file of activations is written."""
    write = unfinished.write_whole_file

    def install(first: Callable[[Path], None]) -> None:
        def wrapped(path: Path, *given: Any) -> None:
            if "activations" in path.parts:
                first(path)
            write(path, *given)

        monkeypatch.setattr(unfinished, "write_whole_file", wrapped)

    return install


def saving_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "armor-saving"]


def test_the_run_goes_on_meanwhile(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    writing: Callable[..., None],
) -> None:
    """Nothing of them is written before a layer of the next block is solved."""
    armor.prune(tiny_model, settings(), tmp_path / "straight")
    solved, waited = threading.Event(), []
    writing(lambda _: waited.append(solved.wait(SECONDS)))

    def finished(name: str, _record: Any) -> None:
        if ".1." in name:
            solved.set()

    armor.prune(tiny_model, settings(), tmp_path / "out", progress=Progress(finished=finished))
    assert waited
    assert all(waited)
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")
    assert not saving_threads()
    assert not unfinished_folder(tmp_path / "out").exists()


def test_a_run_goes_on_from_them(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    armor.prune(tiny_model, settings(), tmp_path / "straight")
    saving: list[Saving] = []
    start = Saving.start
    monkeypatch.setattr(Saving, "start", lambda own, work: (saving.append(own), start(own, work)))

    def interrupt(name: str) -> None:
        if ".1." in name:
            assert saving[0]._thread is not None
            saving[0]._thread.join(SECONDS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        armor.prune(tiny_model, settings(), tmp_path / "out", progress=Progress(started=interrupt))
    kept = unfinished_folder(tmp_path / "out") / "activations"
    assert [path.name for path in kept.iterdir()] == ["00001"]
    armor.prune(tiny_model, settings(), tmp_path / "out")
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


def test_an_interruption_ends_it(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    writing: Callable[..., None],
) -> None:
    """Ctrl-C while the second file is written: it is given up, and nobody reads what is there."""
    armor.prune(tiny_model, settings(), tmp_path / "straight")
    begun, stopped = threading.Event(), threading.Event()
    written: list[str] = []

    def slow(path: Path) -> None:
        written.append(path.name)
        if len(written) == 2:
            begun.set()
            assert stopped.wait(SECONDS)

    def interrupt(name: str) -> None:
        if ".1." in name:
            assert begun.wait(SECONDS)
            stopped.set()
            raise KeyboardInterrupt

    writing(slow)
    with pytest.MonkeyPatch.context() as patch:
        # The file is in the works when the thread is told to stop.
        check = Saving._check_stop
        patch.setattr(
            Saving, "_check_stop", lambda own: (len(written) > 1 and own._stop.wait(9), check(own))
        )
        with pytest.raises(KeyboardInterrupt):
            armor.prune(
                tiny_model, settings(), tmp_path / "out", progress=Progress(started=interrupt)
            )
    assert len(written) == 2
    assert not saving_threads()
    kept = unfinished_folder(tmp_path / "out") / "activations"
    assert [path.name for path in kept.iterdir()] == ["00001.partial"]
    armor.prune(tiny_model, settings(), tmp_path / "out")
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


def test_a_full_disk_is_one_line(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    writing: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    armor.prune(tiny_model, settings(), tmp_path / "straight")
    full = True

    def fail(_path: Path) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    writing(fail)
    check = Saving.check

    def patient(own: Saving) -> None:  # its end comes before that of the run
        if own._thread is not None:
            own._thread.join(SECONDS)
        check(own)

    monkeypatch.setattr(Saving, "check", patient)
    with pytest.raises(ArmorError, match=r"^the disk of .* is full: make room and give the same"):
        armor.prune(tiny_model, settings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    full = False
    result = armor.prune(tiny_model, settings(), tmp_path / "out")
    assert result.resumed == 7  # the first block; not the layer that met the error
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


def test_moments_are_hashed_beside_the_solves(
    tiny_model: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stage without finished layers; an error comes to the caller."""
    threads: list[str] = []
    hashed = pipeline.hash_tensors

    def noting(tensors: Any) -> str:
        threads.append(threading.current_thread().name)
        if len(threads) == 3:
            raise ArmorError("no hash")
        return hashed(tensors)

    monkeypatch.setattr(pipeline, "hash_tensors", noting)
    with pytest.raises(ArmorError, match="no hash"):
        armor.prune(tiny_model, settings(), tmp_path / "out")
    assert threads == ["armor-later"] * 3
    seen: list[str] = []
    progress = Progress(finished=lambda name, _: seen.append(name))
    armor.prune(tiny_model, settings(), tmp_path / "out", progress=progress)
    assert len(seen) == 14 - 4  # q, k, v; o
    assert set(threads[3:]) == {"armor-later"}


def test_copies_stay_as_they_are() -> None:
    given = {
        "0/hidden": torch.arange(6, dtype=torch.bfloat16, device="cpu").view(3, 2).T,
        "0/mask": torch.ones((), dtype=torch.bool, device="cpu"),
    }
    expected = {name: tensor.clone() for name, tensor in given.items()}
    copies = to_host(given)
    for tensor in given.values():
        tensor.zero_()
    for name, tensor in expected.items():
        assert torch.equal(copies[name], tensor)
        assert copies[name].dtype == tensor.dtype
