"""Runs that meet a full disk, a lost shard, a clock set back, or a huge context."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import armor
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.memory import peak_memory
from armor.run.prune import Progress

Settings = Callable[..., PruneConfig]
Weights = Callable[[Path], dict[str, bytes]]


def test_a_disk_that_fills_up_again_and_again(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A random flush fails in every run but the last, which goes on from where they stopped."""
    armor.prune(tiny_model, settings(), tmp_path / "straight")
    left = 0
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    rng, out = random.Random(0), tmp_path / "out"
    messages: list[str] = []
    while not out.exists():
        left = rng.randint(1, 20)
        try:
            armor.prune(tiny_model, settings(), out)
        except ArmorError as error:
            messages.append(str(error))
        assert len(messages) < 60
    assert len(messages) > 2
    assert all("full" in message and "\n" not in message for message in messages)
    left = 0
    if (tmp_path / ".out.run").exists():  # the very last flush failed
        armor.prune(tiny_model, settings(), out)
    assert weights(out) == weights(tmp_path / "straight")
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_shard_that_is_missing(tiny_model: Path, settings: Settings, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file(
        {name: tensors[name] for name in names[:5]}, model / "1.safetensors", {"format": "pt"}
    )
    index = {name: f"{1 + (name not in names[:5])}.safetensors" for name in names}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ArmorError, match=r"2\.safetensors.* is missing"):
        armor.prune(model, settings(), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_clock_that_is_set_back(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is judged by the time of day or the age of a file."""
    armor.prune(tiny_model, settings(), tmp_path / "straight")
    finished: list[str] = []

    def stop(name: str, _record: Any) -> None:
        finished.append(name)
        if len(finished) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        armor.prune(
            tiny_model,
            settings(),
            tmp_path / "out",
            progress=Progress(finished=stop),
        )
    for path in (tmp_path / ".out.run").rglob("*"):
        os.utime(path, (4e9, 4e9))  # of the year 2096
    monkeypatch.setattr(time, "time", lambda: 1.0)
    result = armor.prune(tiny_model, settings(), tmp_path / "out")
    assert result.resumed == 5
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


def test_the_context_of_the_model_takes_no_memory(
    tiny_model: Path, settings: Settings, tmp_path: Path
) -> None:
    armor.prune(tiny_model, settings(), tmp_path / "short")
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = 10**8
    (model / "config.json").write_text(json.dumps(config))
    before = peak_memory()
    armor.prune(model, settings(), tmp_path / "long")
    assert peak_memory() - before < 50 << 20  # a float32 for each position would be 400 MB
    files = [tmp_path / name / "model.safetensors" for name in ("short", "long")]
    assert files[0].read_bytes() == files[1].read_bytes()
