"""Whatever fails while a command writes, and Ctrl-C at any moment: one line, nothing half-written.

The n-th write, fsync or rename fails, for every n until the command gets through.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import armor
from armor.cli import main

SOURCE = str(Path(armor.__file__).parent)
COMMANDS = {
    "inspect": ["inspect", "MODEL", "--json", "OUT"],
    "eval": ["eval", "MODEL", "--ppl", "TEXT", "--seq-len", "32", "--json", "OUT"],
    "export": ["export", "MODEL", "--out", "OUT"],
    "report": ["report", "MODEL", "--out", "OUT"],
    "bench": [
        *("bench", "--shapes", "8x8", "--batches", "1", "--block", "0", "--repeats", "1"),
        *("--dtype", "float32", "--json", "OUT"),
    ],
}


class Faults:
    """Counts what touches the disk for writing, and fails at operation `at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]) -> None:
        self.error = error
        self.at = -1
        self.done = 0
        path_open = Path.open

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode[0] not in "wax":
                return path_open(path, mode, *args, **kwargs)
            self.step()
            return _File(path_open(path, mode, *args, **kwargs), self.step)

        monkeypatch.setattr(Path, "open", opened)
        monkeypatch.setattr(os, "fsync", lambda descriptor: self.step())
        for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "mkdir"), (Path, "rmdir")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return function(*args, **kwargs)

        return counted

    def step(self) -> None:
        self.done += 1
        if self.done == self.at:
            raise self.error()


class _File:
    """A file whose writes are counted; half of the one that fails reaches the disk."""

    def __init__(self, file: Any, step: Callable[[], None]) -> None:
        self._file, self._step = file, step

    def write(self, data: Any) -> Any:
        try:
            self._step()
        except BaseException:
            self._file.write(data[: len(data) // 2])
            raise
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._step()
        self._file.flush()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def run(loadable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Runs a command of `COMMANDS` in a folder of its own; gives its exit code."""
    folder = shutil.copytree(loadable.pruned, tmp_path / "model")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    places = {"MODEL": str(folder), "OUT": "out", "TEXT": str(loadable.text)}

    def run(command: str) -> int:
        words = [places.get(word, word) for word in COMMANDS[command]]
        monkeypatch.setattr(sys, "argv", ["armor", *words])
        try:
            main()
        except SystemExit as ending:
            return int(ending.code or 0)
        return 0

    return run


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def clear() -> None:
    for path in Path().iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def only_line(capfd: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("armor: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("command", "number"),
    [
        *((command, errno.ENOSPC) for command in COMMANDS),
        *(("inspect", number) for number in (errno.EROFS, errno.EIO)),
    ],
)
def test_any_write_may_fail(
    run: Callable[[str], int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    number: int,
) -> None:
    assert run(command) == 0
    complete = files()
    clear()
    faults = Faults(monkeypatch, lambda: OSError(number, os.strerror(number)))
    old = {} if command == "export" else {"out": b"of an earlier run"}
    capfd.readouterr()
    for faults.at in range(1, 1000):
        faults.done = faults.at  # nothing fails yet
        for name, content in old.items():
            Path(name).write_bytes(content)
        faults.done = 0
        code = run(command)
        if faults.done < faults.at:
            break
        assert code == 2
        line = only_line(capfd)
        assert os.strerror(number) in line or "is full" in line
        # A finished output may be there: its folder could not be synchronised, or a file after it
        # not be written.
        found = files()
        assert found == old or names(found) <= names(complete)
        assert found == old or command != "export" or names(found) == names(complete)
        assert not list(Path().glob(".*"))
        clear()
    assert code == 0
    assert faults.at > 4
    assert names(files()) == names(complete)


def names(found: dict[str, bytes]) -> set[tuple[str, int]]:
    """Names and sizes, to the thousand bytes: a time may be in them."""
    return {(name, len(content) // 1000) for name, content in found.items()}


class Interrupts:
    """Raises KeyboardInterrupt at the n-th line of armor's own code that is run."""

    def __init__(self) -> None:
        self.at = -1
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(SOURCE) or "/cli/__init__" in name:
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files left open
@pytest.mark.parametrize("command", ["inspect", "export"])
def test_ctrl_c_at_any_moment(
    run: Callable[[str], int], capfd: pytest.CaptureFixture[str], command: str
) -> None:
    """At 30 lines spread over the whole run, and at each of the last 30."""
    interrupts = Interrupts()

    def interrupted(at: int) -> int:
        clear()
        interrupts.at, interrupts.lines = at, 0
        before = sys.gettrace()
        sys.settrace(interrupts)
        try:
            return run(command)
        finally:
            sys.settrace(before)

    assert interrupted(-1) == 0
    complete, total = files(), interrupts.lines
    capfd.readouterr()
    for at in sorted({*range(1, total, total // 30 + 1), *range(total - 30, total + 1)}):
        code = interrupted(at)
        assert (code, interrupts.lines < at) in ((130, False), (0, True))
        if code:
            assert "interrupted" in only_line(capfd)
        assert files() in ({}, complete)
        assert not list(Path().glob(".*"))
        capfd.readouterr()


def test_read_only_and_impossible_places(
    run: Callable[[str], int], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out").mkdir()
    for command in ("inspect", "eval", "bench"):
        assert run(command) == 2
        assert "it is a folder" in only_line(capfd)
    Path("out").rmdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode, **more: not mode & os.W_OK and access(path, mode, **more)
    )
    for command in ("inspect", "eval", "bench", "report"):
        assert run(command) == 2
        assert "read-only" in only_line(capfd)
    assert files() == {}
