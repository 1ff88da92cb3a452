"""Idle threads sleep, almost at once, unless the user wants something else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from armor.engines.local import LocalPool
from armor.idle import let_idle_threads_sleep

NAMES = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None), ("PASSIVE", "1000")),
        (("passive", None), ("passive", "1000")),
        (("PASSIVE", "0"), ("PASSIVE", "0")),
        (("ACTIVE", None), ("ACTIVE", None)),
    ],
)
def test_what_the_user_has_said_stays(
    given: tuple[str | None, ...], expected: tuple[str | None, ...]
) -> None:
    environment = {name: value for name, value in zip(NAMES, given, strict=True) if value}
    let_idle_threads_sleep(environment)
    assert tuple(map(environment.get, NAMES)) == expected


def test_the_command_sets_it_before_torch_loads() -> None:
    code = f"""
import os, sys
import armor.cli
assert "torch" not in sys.modules
print(*(os.environ[name] for name in {NAMES}))
"""
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)
    assert done.stdout.split() == ["PASSIVE", "1000"], done.stderr


def test_workers_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    seen: list[dict[str, str]] = []

    def popen(*_: object, env: dict[str, str], **__: object) -> object:
        seen.append(env)
        return object()

    monkeypatch.setattr(subprocess, "Popen", popen)
    pool = LocalPool.__new__(LocalPool)
    pool._scratch = tmp_path
    pool._launch("cpu").line.close()
    assert [seen[0][name] for name in NAMES] == ["PASSIVE", "1000"]
