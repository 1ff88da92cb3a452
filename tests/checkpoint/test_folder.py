"""A folder that appears finished or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from armor.checkpoint.folder import building
from armor.errors import ArmorError


def test_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with building(out) as folder:
        (folder / "a").write_text("a")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "io")])
def test_an_error_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with building(tmp_path / "out") as folder:
            (folder / "a").write_text("a")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def fail() -> None:
        with building(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ArmorError, match=r"disk of .* is full: make room"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    """A real process, killed while it builds; its folder is kept as long as it lives."""
    code = (
        "import sys, time; from pathlib import Path; from armor.checkpoint.folder import building\n"
        f"with building(Path({str(tmp_path / 'out')!r})):\n"
        "    print('building', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        (leftover,) = tmp_path.iterdir()
        with building(tmp_path / "out"):
            assert leftover.exists()
        process.kill()
    assert leftover.exists()
    with building(tmp_path / "other"):
        assert leftover.exists()
    (tmp_path / "out").rmdir()
    with building(tmp_path / "out"):
        assert not leftover.exists()


def test_a_dangling_link_is_no_free_name(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArmorError, match="exists already"), building(tmp_path / "out"):
        pass


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArmorError, match="cannot write to"), building(tmp_path / "file" / "out"):
        pass
