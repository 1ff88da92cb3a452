"""Where a command's events go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from armor.events import Recorder, Sink

OFF = "off"


@contextmanager
def recording(
    command: str, out: Path, default: Path, log: str | None, tensorboard: Path | None, **about: Any
) -> Iterator[Recorder]:
    """A recorder for the work inside: the logger, a log file, TensorBoard if asked for.

    Args:
        default: the log where the user named none; it appears only once the work has begun.
        log: None, a file, or "off". tensorboard: a folder for it.
        about: fields of ``run_started``.

    Raises:
        ArmorError: a log or folder that cannot be written.
    """
    from armor.checkpoint.jsonfile import check_file
    from armor.events import JsonLines, Logger, Recorder, TensorBoard

    sinks: list[Sink] = [Logger()]
    if log is None:
        sinks.append(JsonLines(default, wait_for=("run_planned", "measured", "tuning_planned")))
    elif log != OFF:
        check_file(Path(log))
        sinks.append(JsonLines(Path(log)))
    if tensorboard is not None:
        sinks.append(TensorBoard(tensorboard, out.name))
    recorder = Recorder(sinks)
    with recorder.run(command, out=str(out), **about):
        yield recorder


def default_log(out: Path) -> Path:
    """The log of a checkpoint folder, next to it: the folder itself holds nothing of the clock."""
    out = Path(os.path.abspath(out))
    return out.parent / f"{out.name}.events.jsonl"
