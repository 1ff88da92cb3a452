"""A lock that needs nothing of the file system but exclusive creation."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from armor.checkpoint import lock as module
from armor.checkpoint.lock import Lock
from armor.checkpoint.owner import SILENCE, Owner
from armor.errors import ArmorError


def a_lock(folder: Path) -> Lock:
    return Lock(folder / "lock", f"somebody works in {folder}", "go elsewhere")


def left_by(folder: Path, owner: Owner, silent: float = 0) -> Path:
    """A file as `owner` left it, whose last sign of life was so many seconds ago."""
    path = folder / "lock.1"
    path.write_text(owner.to_json())
    then = path.stat().st_mtime - silent
    os.utime(path, (then, then))
    return path


def test_one_at_a_time(tmp_path: Path) -> None:
    with a_lock(tmp_path) as held:
        held.check()
        with pytest.raises(
            ArmorError,
            match=rf"somebody works in .* \(process {os.getpid()} on .*: wait for it, or go elsew",
        ):
            a_lock(tmp_path).take()
    assert list(tmp_path.iterdir()) == []
    with a_lock(tmp_path):
        pass


def test_no_flock_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even its result: on some file systems it locks nothing."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with a_lock(tmp_path), pytest.raises(ArmorError, match="somebody works in"):
        a_lock(tmp_path).take()


def ended() -> int:
    """The id of a process that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_dead_process_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left = left_by(tmp_path, replace(Owner.here("word"), pid=ended()))
    with a_lock(tmp_path) as held:
        assert not left.exists()
        held.check()
    assert "ended before its work was done; taking over" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_later_process_with_the_same_id_is_another(tmp_path: Path) -> None:
    here = Owner.here("word")
    if not here.started:
        pytest.skip("this system does not say when a process began")
    left_by(tmp_path, replace(here, started="1"))
    with a_lock(tmp_path):
        pass


def test_a_killed_child_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left_by(tmp_path, replace(Owner.here("word"), pid=process.pid, started="unknown"))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with a_lock(tmp_path):
        pass
    process.communicate()


@pytest.mark.parametrize("space", ["another machine", ""])
def test_a_process_elsewhere_counts_by_its_signs_of_life(
    tmp_path: Path, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    owner = replace(Owner.here("word"), host="node7", space=space)
    left = left_by(tmp_path, owner, silent=SILENCE / 2)
    with pytest.raises(ArmorError, match=r"on node7.*sign of life \d+ s ago.*delete .*lock\.1"):
        a_lock(tmp_path).take()
    assert [path.name for path in tmp_path.iterdir()] == ["lock.1"]
    os.utime(left, (0, left.stat().st_mtime - SILENCE))
    with a_lock(tmp_path):
        pass
    assert "node7" in caplog.text


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"pid": 1}', b'{"pid": "x"}', b"\xff\xfe\x80"]
)
def test_a_file_cut_off_counts_by_its_age(tmp_path: Path, text: bytes) -> None:
    """A process that dies between creating and writing it, or is about to write it."""
    path = tmp_path / "lock.1"
    path.write_bytes(text)
    with pytest.raises(ArmorError, match="somebody works in"):
        a_lock(tmp_path).take()
    os.utime(path, (0, path.stat().st_mtime - 2 * SILENCE))
    with a_lock(tmp_path):
        pass


def test_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(module, "_BEAT", 0.01)
    with a_lock(tmp_path):
        path = tmp_path / "lock.1"
        os.utime(path, (0, 0))
        until = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_who_lost_it_stops_and_leaves_it_alone(tmp_path: Path) -> None:
    """A process that was asleep for long, and another that took over from it."""
    held = a_lock(tmp_path)
    held.take()
    (tmp_path / "lock.1").unlink()
    with a_lock(tmp_path) as other:
        with pytest.raises(ArmorError, match="took over"):
            held.check()
        assert not held.is_held()
        held.release()
        other.check()


WORKER = """
import sys, time
from pathlib import Path
from armor.checkpoint.lock import Lock
from armor.errors import ArmorError
folder, count, die = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "die"
done = 0
while done < count:
    try:
        with Lock(folder / "lock", "busy", "wait"):
            (folder / "inside").touch(exist_ok=False)  # fails if two are inside
            number = int((folder / "number").read_text())
            (folder / "number").write_text(str(number + 1))
            (folder / "inside").unlink()
            done += 1
            if die and done == count:
                import os
                os.kill(os.getpid(), 9)
    except ArmorError:
        time.sleep(0.001)
"""


def test_never_two_at_a_time(tmp_path: Path) -> None:
    """Processes that count together, some of which die with the lock in hand."""
    (tmp_path / "number").write_text("0")
    command = [sys.executable, "-c", WORKER, str(tmp_path), "8"]
    running = [
        subprocess.Popen([*command, end], stderr=subprocess.PIPE, text=True)
        for end in ("die", "live", "die", "live")
    ]
    errors = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [-9, 0, -9, 0], errors
    assert (tmp_path / "number").read_text() == "32"
