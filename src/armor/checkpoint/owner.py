"""Who holds a lock: a process of this machine or of another, and whether it still lives."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

#: Seconds without a sign of life after which a process that cannot be asked counts as dead.
SILENCE = 300.0


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock.

    Attributes:
        token: a random word, no two locks have the same. host: its machine, by name.
        space: which process ids mean the same as here: machine, boot and container; empty where
            that is not known. pid: its id.
        started: when it began, in ticks of its machine, so that a later process with its id is
            another one; empty where that is not known.
        since: when it took the lock, local time in words.
    """

    token: str
    host: str
    space: str
    pid: int
    started: str
    since: str

    @classmethod
    def here(cls, token: str) -> Owner:
        """This process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        pid = os.getpid()
        return cls(token, platform.node(), _space(), pid, _started(pid) or "", since)

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """What `to_json` gave; None for a file that is not written yet, or cut off."""
        try:
            found = json.loads(text)
            pid = int(found.pop("pid"))
            return cls(pid=pid, **{name: str(value) for name, value in found.items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def to_json(self) -> str:
        """All there is, in one line."""
        return json.dumps(asdict(self)) + "\n"

    def is_dead(self) -> bool | None:
        """Whether the process is gone; None if this process cannot find out."""
        if not self.space or self.space != _space():
            return None
        now = _started(self.pid)
        if now is not None and not (now and self.started):
            return None  # it may be a later process with the same id
        return now != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@cache
def _space() -> str:
    if sys.platform == "win32":  # there a process cannot be looked up without harm
        return ""
    parts = [platform.node()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process began; "" if it lives and more is not known, None if there is none."""
    try:
        # "pid (name) state ...": the name may hold anything; the start is the 22nd field.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if sys.platform == "win32":
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # it is another user's
        pass
    return ""
