"""Kernels are kept where that is possible, and compiled again where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: As where the packages are root's and the user has no home: Numba finds nothing by itself.
RUN = """
import sys, tempfile
from numba.core import caching
caching.CacheImpl._locator_classes = [caching.UserProvidedCacheLocator]
tempfile.tempdir = sys.argv[1]
import torch
from armor.baselines import obs_block
from armor.linear import ArmorLinear
from armor.baselines.magnitude import magnitude
from armor.factorize.problem import Problem
from armor.simd.cache import is_kept
if sys.argv[2] == "compute":
    linear = ArmorLinear.from_factors(magnitude(Problem(torch.eye(8), torch.ones(8))))
    assert torch.equal(linear(torch.eye(8)), torch.eye(8))
print(is_kept())
"""


def run(temporary: Path, compute: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, "-c", RUN, str(temporary), compute],
        capture_output=True,
        text=True,
        env={**base, **environment},
        check=False,
    )


@pytest.mark.slow
def test_a_temporary_folder(tmp_path: Path) -> None:
    result = run(tmp_path, "compute")
    assert result.stdout == "True\n", result.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.rglob("*.nbi"))
    assert result.stderr.count("no folder to keep compiled kernels in") == 1
    assert f"they are kept in {folder}" in result.stderr


@pytest.mark.slow
def test_no_folder_at_all(tmp_path: Path) -> None:
    result = run(tmp_path / "missing", "compute")
    assert result.stdout == "False\n", result.stderr
    assert result.stderr.count("each start compiles them again") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path: Path) -> None:
    """Kept kernels are executed."""
    if not hasattr(os, "getuid"):
        pytest.skip("no owners of folders here")
    planted = tmp_path / f"armor-kernels-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    result = run(tmp_path)
    assert result.stdout == "True\n", result.stderr
    assert not list(planted.iterdir())
    assert f"they are kept in {planted}-" not in result.stderr
    assert "they are kept in" in result.stderr


def test_the_users_own_folder_needs_no_word(tmp_path: Path) -> None:
    result = run(tmp_path / "missing", NUMBA_CACHE_DIR=str(tmp_path / "own"))
    assert result.stdout == "True\n", result.stderr
    assert "kernels" not in result.stderr
    assert (tmp_path / "own").is_dir()
