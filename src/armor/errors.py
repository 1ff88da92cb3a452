"""The one exception type that means "the input is wrong, and here is the remedy"."""

from __future__ import annotations

from pathlib import Path


class ArmorError(Exception):
    """Bad input or an unusable environment: one line that says what is wrong and what to do.

    The command line prints the message alone and exits with code 2.
    """


def printable(text: str) -> str:
    """`text` in one line, without what would steer a terminal."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else "?" for char in line)


def reason(error: BaseException) -> str:
    """What `error` says, or its type, in one printable line of bounded length."""
    return printable(str(error)[:1000])[:300] or type(error).__name__


def cannot_read(path: Path, error: BaseException, damaged: str) -> ArmorError:
    """Why a file cannot be read, and what helps.

    Args:
        damaged: what helps if its contents are at fault, or if it is not there.
    """
    cause = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
    if isinstance(error, PermissionError):
        remedy = "this user may not read it: change its owner or permissions (chmod, chown)"
    elif isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        remedy = "check the disk or the network folder that it is on"
    else:
        remedy = damaged
    return ArmorError(f"cannot read {path}: {cause}; {remedy}")
