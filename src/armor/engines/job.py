"""Job: one piece of a run's work, small enough to be sent anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

#: Named tensors, as they travel between jobs.
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Job:
    """A call of one method of `armor.run.worker.Worker`.

    Attributes:
        task: the method. args: its plain arguments.
        refs: its tensors, by name, each an engine's handle on named tensors.
        threads: how many it runs on.
        results: how many groups of named tensors it returns.
        size: how long it may take, in any unit; the largest goes first.
        urgent: goes before all that is not; others wait for it.
        label: what it is about, for messages.
    """

    task: str
    args: dict[str, Any]
    refs: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    results: int = 1
    size: int = 0
    urgent: bool = False
    label: str = ""
