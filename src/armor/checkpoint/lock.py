"""A lock that keeps two processes from the same work, on any file system.

A file that is created exclusively, and not ``flock``: on clusters that fails, or succeeds without
locking anything. The file says who holds the lock, and its time of change is a sign of life.

The files are called ``PREFIX.1``, ``PREFIX.2``, ...: who finds that the owner of the last is dead
takes over by creating the next. So only one can take over, and nobody removes the file of a living
process.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path

from armor.checkpoint.owner import SILENCE, Owner
from armor.errors import ArmorError

#: Seconds between signs of life.
_BEAT = 15.0
#: Tries to create a file while others do, too.
_TRIES = 20


class Lock:
    """Held from `take` to `release`, or to the end of the process, however it ends."""

    def __init__(self, prefix: Path, work: str, remedy: str) -> None:
        """Nothing is taken yet.

        Args:
            prefix: of the files, in a folder that exists at `take`.
            work: for messages, such as "another run is working in FOLDER".
            remedy: for messages, such as "choose another --out".
        """
        self._prefix = prefix
        self._work, self._remedy = work, remedy
        self._path: Path | None = None
        self._owner = Owner.here("")
        self._released = threading.Event()
        self._lost = False

    def take(self) -> None:
        """Hold the lock; from a dead process it is taken over, which the logger warns of.

        Raises:
            ArmorError: another process holds it, or many try at the same time.
            OSError: no file can be made there.
        """
        for _ in range(_TRIES):
            if self._try():
                self._released, self._lost = threading.Event(), False
                threading.Thread(target=self._beat, name="armor lock", daemon=True).start()
                return
            time.sleep(random.uniform(0.01, 0.1))
        raise ArmorError(f"{self._work}: wait for it, or {self._remedy}")

    def check(self) -> None:
        """Raise `ArmorError` if another process has taken the lock over.

        It does so after minutes without a sign of life, from a process that was stopped, or could
        not reach the file system.
        """
        self._lost = self._lost or not self.is_held()
        if self._lost:
            raise ArmorError(
                f"{self._work}: it took over because this one gave no sign of life for minutes;"
                " leave the work to it"
            )

    def __enter__(self) -> Lock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let the next one in."""
        self._released.set()
        # (Empty: the file was not written yet when an interrupt came.)
        if self._path is not None and (self.is_held() or _is_empty(self._path)):
            self._path.unlink(missing_ok=True)
        self._path = None

    def close(self) -> None:
        """`release`, for `contextlib.closing` around the lock: interrupts come at any line."""
        self.release()

    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._path is not None and _read(self._path) == self._owner

    def _try(self) -> bool:
        """Whether the lock was taken; False if another process was faster."""
        owners = {number: _read(path) for number, path in self._files().items()}
        for number, owner in owners.items():  # nearly always none, or one
            if not self._is_dead(owner, self._named(number)):
                return False
        path = self._named(max(owners, default=0) + 1)
        self._owner = Owner.here(secrets.token_hex(8))
        self._path = path
        try:
            _create(path, self._owner.to_json())
        except FileExistsError:
            self._path = None
            return False
        # What was there a moment ago may have been another's by the time the file was created.
        others = {number: file for number, file in self._files().items() if file != path}
        if {number: _read(file) for number, file in others.items()} != owners:
            path.unlink(missing_ok=True)
            self._path = None
            return False
        for number, file in others.items():
            logging.getLogger("armor").warning(
                "%s ended before its work was done; taking over from it (%s)",
                owners[number] or "another process",
                file,
            )
            file.unlink(missing_ok=True)
        return True

    def _is_dead(self, owner: Owner | None, path: Path) -> bool:
        """Whether the process is gone that made the file `path`; False: look again.

        Raises:
            ArmorError: it lives, or that is not known yet.
        """
        dead = None if owner is None else owner.is_dead()
        if dead:
            return True
        silent = self._silence(path) if dead is None else 0.0
        if silent is None or silent > SILENCE:
            return silent is not None
        if owner is None:  # it is being written
            return False
        message = f"{self._work} ({owner})"
        if dead is None:
            raise ArmorError(
                f"{message}, which gave a sign of life {silent:.0f} s ago: wait for it,"
                f" {self._remedy}, or, if you know that it is gone, delete {path}"
            )
        raise ArmorError(f"{message}: wait for it, or {self._remedy}")

    def _silence(self, path: Path) -> float | None:
        """Seconds since the last sign of life, by the clock of the file system; None: released."""
        probe = self._prefix.with_name(f"{self._prefix.name}.{secrets.token_hex(4)}.now")
        try:
            probe.touch()
            return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
        except FileNotFoundError:
            return None
        finally:
            probe.unlink(missing_ok=True)

    def _files(self) -> dict[int, Path]:
        start = f"{self._prefix.name}."
        names = os.listdir(self._prefix.parent)
        ends = [name.removeprefix(start) for name in names if name.startswith(start)]
        return {int(end): self._named(int(end)) for end in sorted(ends) if end.isdecimal()}

    def _named(self, number: int) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}.{number}")

    def _beat(self) -> None:
        """Signs of life until the end."""
        while not self._released.wait(_BEAT):
            path = self._path
            if path is None:
                return
            with suppress(OSError):  # a file system out of reach; the next time, perhaps
                if not self.is_held():
                    self._lost = not self._released.is_set()
                    return
                os.utime(path)


def _read(path: Path) -> Owner | None:
    try:
        return Owner.parse(path.read_text(errors="replace"))
    except FileNotFoundError:
        return None


def _is_empty(path: Path) -> bool:
    return path.exists() and not path.stat().st_size


def _create(path: Path, text: str) -> None:
    """Raises `FileExistsError` if there is such a file, whoever made it and whenever."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
