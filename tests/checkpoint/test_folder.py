"""A folder that appears finished or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from armor.checkpoint.folder import building, check_outside
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


def test_another_process_is_kept_out_until_it_dies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real process, killed while it builds; its folder is kept as long as it lives."""
    out = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from armor.checkpoint.folder import building\n"
        f"with building(Path({str(out)!r})):\n"
        "    print('building', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        (leftover,) = tmp_path.glob(".out.*.partial")
        holder = rf"another process is writing .*out \(process {process.pid} on .*choose another"
        with pytest.raises(ArmorError, match=holder), building(out):
            pass
        with building(tmp_path / "out.b"), building(tmp_path / "other"):
            assert leftover.exists()
        process.kill()
    with building(out):
        assert not leftover.exists()
    assert f"process {process.pid} on" in caplog.text
    assert "taking over" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "out.b"]


def test_leftovers_of_another_name_stay(tmp_path: Path) -> None:
    """``.out.b.0123abcd.partial`` may be in use: it is not of ``out``."""
    other = tmp_path / ".out.b.0123abcd.partial"
    own = tmp_path / ".out.0123abcd.partial"
    other.mkdir()
    own.mkdir()
    with building(tmp_path / "out"):
        assert other.exists()
        assert not own.exists()


@pytest.mark.parametrize("inside", ["", "out", "deep/out", "../model/out"])
def test_a_folder_inside_the_source_is_refused(tmp_path: Path, inside: str) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (tmp_path / "link").symlink_to(source)
    for folder in (source / inside, tmp_path / "link" / inside):
        with pytest.raises(ArmorError, match=r"lies inside .*: choose an output folder outside of"):
            check_outside(folder, source)


def test_a_folder_beside_the_source_is_fine(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    check_outside(tmp_path / "out", tmp_path / "model")
    check_outside(tmp_path / "model-out", tmp_path / "model")


def test_a_dangling_link_is_no_free_name(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArmorError, match="exists already"), building(tmp_path / "out"):
        pass


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArmorError, match="cannot write to"), building(tmp_path / "file" / "out"):
        pass
