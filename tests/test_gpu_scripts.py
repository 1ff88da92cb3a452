"""The scripts that measure a GPU, as far as they go without one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def test_the_shell_script_is_one_and_gives_options_that_there_are() -> None:
    done = subprocess.run(["sh", "-n", str(FOLDER / "gpu.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    common = (FOLDER / "common.py").read_text(encoding="utf-8")
    calls = re.findall(r"\b(\w+\.py)\b([^|&\n]*)", (FOLDER / "gpu.sh").read_text(encoding="utf-8"))
    assert calls
    for script, given in calls:
        source = (FOLDER / script).read_text(encoding="utf-8") + common
        for option in re.findall(r"--[\w-]+", given):
            assert f'"{option}"' in source, (script, option)


def test_prune_gpu_runs_small_without_a_gpu(tmp_path: Path) -> None:
    script = [sys.executable, str(FOLDER / "prune_gpu.py"), "--small", "--out", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text(encoding="utf-8"))
