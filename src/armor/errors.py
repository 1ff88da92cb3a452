"""The one exception type that means "the input is wrong, and here is the remedy"."""

from __future__ import annotations


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
