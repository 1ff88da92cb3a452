"""A folder that appears finished or not at all."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from armor.errors import ArmorError

if sys.platform != "win32":
    import fcntl


def check_output(out: Path) -> None:
    """Raise `ArmorError` unless `out` can become a new folder (it is absent, or empty)."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ArmorError(f"{out} exists already: delete it or choose another output folder")


@contextmanager
def building(out: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends without an error.

    On an error, Ctrl-C included, it is removed; what a killed process left is removed at the next
    try. With `replace`, an `out` that exists is replaced at that moment and not before.

    Raises:
        ArmorError: `out` exists, cannot be made, or the disk is full.
    """
    out = Path(os.path.abspath(out))
    if not replace:
        check_output(out)
    temporary = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    replaced = temporary.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        temporary.mkdir()
    except OSError as error:
        raise ArmorError(f"cannot write to {out.parent}: {error.strerror}") from None
    try:
        with full_disk(out.parent):
            with _lock(temporary):
                yield temporary
                sync_folder(temporary)
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


def _remove_leftovers(out: Path) -> None:
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        with _lock(leftover) as free:
            if free:
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder that is being built; gives whether it was free (a leftover)."""
    if sys.platform == "win32":  # no such lock: leftovers stay
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


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
