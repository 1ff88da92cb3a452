"""Where compiled kernels are kept: one place that decides, before the first is defined.

Numba keeps them beside the source, or in the home of the user, and stops the program where neither
can be written: in a container whose packages are root's and whose user has no home.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from numba import config
from numba.core.caching import FunctionCache

#: The process that has warned: those that it starts need not.
_SAID_BY = "ARMOR_KERNELS_SAID_BY"


@cache
def is_kept() -> bool:
    """Whether kernels can be kept at all, for ``njit(cache=...)``.

    Where Numba finds no folder it is given a temporary one of this user, also for processes started
    later; one warning says what that means.
    """
    if _has_folder():
        return True
    folder = _temporary_folder()
    if folder is not None:
        settings: Any = config  # its attributes are made on import
        settings.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = str(folder)
    kept = folder is not None and _has_folder()
    if os.environ.setdefault(_SAID_BY, pid := str(os.getpid())) == pid:
        logging.getLogger("armor").warning(
            "no folder to keep compiled kernels in (NUMBA_CACHE_DIR names one): %s",
            f"they are kept in {folder}" if kept else "each start compiles them again",
        )
    return kept


def _has_folder() -> bool:
    try:
        FunctionCache(_has_folder)
    except (RuntimeError, OSError):
        return False
    return True


def _temporary_folder() -> Path | None:
    """A folder that nobody but this user can write to: what lies in it is executed."""
    try:
        user = os.getuid() if hasattr(os, "getuid") else "cache"
        folder = Path(tempfile.gettempdir()) / f"armor-kernels-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and (
            not hasattr(os, "getuid")
            or (found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
        ):
            return folder
        return Path(tempfile.mkdtemp(prefix="armor-kernels-"))
    except OSError:
        return None
