"""The bytes do not depend on the engine, the number of workers, or workers that die."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import armor
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.prune import Progress

Settings = Callable[..., PruneConfig]
Weights = Callable[[Path], dict[str, bytes]]

Workers = Callable[..., list[int]]
SERVE = "armor.engines.local_worker"


def test_two_workers_and_workers_that_die(
    tiny_model: Path,
    settings: Settings,
    weights: Weights,
    workers: Workers,
    killer: Callable[..., Any],
    tmp_path: Path,
) -> None:
    armor.prune(tiny_model, settings(), tmp_path / "one", workers=1)
    kills = killer(2, SERVE)
    armor.prune(tiny_model, settings(), tmp_path / "two", workers=2, progress=kills.progress())
    assert kills.left == 0
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    assert not workers(SERVE)
    armor.prune(tiny_model, settings(target="dense"), tmp_path / "dense one", workers=1)
    armor.prune(tiny_model, settings(target="dense"), tmp_path / "dense two", workers=2)
    assert weights(tmp_path / "dense two") == weights(tmp_path / "dense one")


def test_a_job_that_kills_every_worker_is_one_line(
    tiny_model: Path,
    settings: Settings,
    workers: Workers,
    killer: Callable[..., Any],
    tmp_path: Path,
) -> None:
    kills = killer(100, SERVE)
    with pytest.raises(ArmorError, match=r"3 workers died at model.layers.0.*SIGKILL") as caught:
        armor.prune(tiny_model, settings(), tmp_path / "out", workers=2, progress=kills.progress())
    assert "\n" not in str(caught.value)
    assert not workers(SERVE)
    assert not (tmp_path / "out").exists()


def test_what_goes_wrong_in_a_worker_is_one_line(
    tiny_model: Path, settings: Settings, tmp_path: Path
) -> None:
    """The model vanishes under a running job."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    vanish = Progress(started=lambda name: (model / "model.safetensors").unlink(missing_ok=True))
    with pytest.raises((ArmorError, RuntimeError), match=r"model\.safetensors") as caught:
        armor.prune(model, settings(), tmp_path / "out", workers=2, progress=vanish)
    assert "\n" not in str(caught.value)


def test_a_script_without_a_guard(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    """Workers do not run the user's script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import armor\nprint('once')\n"
        f"config = armor.PruneConfig(calibration={str(text)!r}, samples=4, seq_len=16,"
        " method='magnitude')\n"
        f"armor.prune({str(tiny_model)!r}, config, {str(tmp_path / 'out')!r}, workers=2)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("once\n", 0), done.stderr


def test_bad_values(tiny_model: Path, settings: Settings, tmp_path: Path) -> None:
    for options, says in (
        ({"engine": "dask"}, "valid: local, ray"),
        ({"workers": 0}, "at least 1"),
    ):
        with pytest.raises(ArmorError, match=says):
            armor.prune(tiny_model, settings(), tmp_path / "out", **options)  # type: ignore[arg-type]
