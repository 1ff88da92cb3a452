"""A folder that appears finished or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from armor.checkpoint.lock import Lock
from armor.errors import ArmorError


def check_output(out: Path) -> None:
    """Raise `ArmorError` unless `out` can become a new folder (it is absent, or empty)."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ArmorError(f"{out} exists already: delete it or choose another output folder")


def check_outside(out: Path, source: Path) -> None:
    """Raise `ArmorError` if `out` is the folder `source` or lies in it; links are followed."""
    new, old = out.resolve(), source.resolve()
    if new == old or old in new.parents:
        raise ArmorError(
            f"{out} lies inside {source}, which is to stay as it is: choose an output folder"
            " outside of it"
        )


@contextmanager
def building(out: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends without an error.

    On an error, Ctrl-C included, it is removed; what a killed process left is removed at the next
    try. With `replace`, an `out` that exists is replaced at that moment and not before.

    Raises:
        ArmorError: `out` exists, cannot be made, or another process is making it; a full disk.
    """
    out = Path(os.path.abspath(out))
    if not replace:
        check_output(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArmorError(f"cannot write to {out.parent}: {error.strerror}") from None
    lock = _lock(out)
    with full_disk(out.parent), closing(lock), lock:
        if not replace:
            check_output(out)  # again: the one that held the lock may have made it
        _remove_leftovers(out)
        temporary, replaced = _partial(out), _partial(out)
        try:
            temporary.mkdir()
            yield temporary
            sync_folder(temporary)
            lock.check()
            if replace and out.exists():
                out.rename(replaced)
            elif out.exists():
                out.rmdir()
            temporary.rename(out)
            sync_folder(out.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def full_disk(folder: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn errors of writing into one line; `partial`, an unfinished file, is removed.

    Raises:
        ArmorError: the disk of `folder` is full, or nothing can be written there.
    """
    try:
        yield
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ArmorError(
                f"the disk of {folder} is full: make room and give the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise ArmorError(f"cannot write to {folder}: {error.strerror}") from error
        raise


def _lock(out: Path) -> Lock:
    return Lock(
        out.parent / f".{out.name}.building",
        f"another process is writing {out}",
        "choose another output folder",
    )


def _partial(out: Path) -> Path:
    return out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"


def _remove_leftovers(out: Path) -> None:
    """Remove what killed processes left, with the lock held."""
    name = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}\.partial")
    for path in out.parent.iterdir():
        if name.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that the names in it survive a power cut."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unfinished_folder(out: Path) -> Path:
    """Where the unfinished run of `out` lies: beside it, hidden."""
    return out.parent / f".{out.name}.run"
