"""What the "armor" logger prints on the command line: nothing but warnings, unless asked."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO

# Generic at run time only from Python 3.11 on.
if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:
    _Handler = logging.StreamHandler

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def set_verbosity(count: int) -> None:
    """What the "armor" logger prints to stderr: 0 warnings, 1 what happens, 2 every detail."""
    logger = logging.getLogger("armor")
    for handler in [found for found in logger.handlers if isinstance(found, _Stderr)]:
        logger.removeHandler(handler)
    logger.setLevel(_LEVELS[min(count, len(_LEVELS) - 1)])
    handler = _Stderr()
    form = "%(asctime)s %(levelname)s %(message)s" if count else "armor: %(message)s"
    handler.setFormatter(logging.Formatter(form, "%H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False


class _Stderr(_Handler):
    """Writes to whatever sys.stderr is by then: a live progress bar puts its own in place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr
