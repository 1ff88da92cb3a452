"""A lock that keeps two runs out of one folder, and goes with the process that holds it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from armor.errors import ArmorError

if sys.platform != "win32":
    import fcntl


class Lock:
    """Held from `take` to `release`, or to the end of the process, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        """Raises `ArmorError` if another process holds it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise ArmorError(
                    f"another run is working in {self._path.parent}"
                    + (f" (process {holder})" if holder.isdigit() else "")
                    + ": wait for it, or choose another --out"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the next one in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
