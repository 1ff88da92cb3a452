"""The live progress lines: of a run, with its loss against NoWag-P's, and of an evaluation."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)

from armor.checkpoint.loss_ratio import GeometricMean, loss_ratio
from armor.checkpoint.records import LayerRecord
from armor.run.plan import LayerPlan
from armor.run.prune import Progress


class LayerProgress:
    """A context manager; the bar advances by weights, so that the ETA is of time, not layers."""

    def __init__(self, label: str = "") -> None:
        self._label = f"{label} " if label else ""
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,  # a log would fill with control codes
        )
        self._sizes: dict[str, int] = {}
        self._mean = GeometricMean()
        self._task: TaskID | None = None

    def __enter__(self) -> LayerProgress:
        self._bar.start()
        self._task = self._bar.add_task(f"{self._label}loading", total=None, loss="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def callbacks(self) -> Progress:
        """What `armor.run.prune.prune` calls."""
        return Progress(self._measured, self._planned, self._started, self._finished, self._resumed)

    def _measured(self, name: str, done: int, total: int) -> None:
        assert self._task is not None
        self._bar.update(
            self._task, description=f"{self._label}measuring", completed=done, total=total
        )

    def _planned(self, plans: list[LayerPlan]) -> None:
        self._sizes = {plan.name: plan.shape[0] * plan.shape[1] for plan in plans if not plan.dense}
        assert self._task is not None
        self._bar.update(
            self._task,
            description=f"{self._label}calibrating",
            completed=0,
            total=sum(self._sizes.values()),
        )

    def _resumed(self, records: dict[str, LayerRecord], damaged: list[str]) -> None:
        """Say what an interrupted run left, also where no bar is drawn."""
        text = f"resuming: {len(records)} of {len(self._sizes)} layers were finished before"
        if damaged:
            text += f"; {len(damaged)} damaged, done again"
        self._bar.console.print(text, highlight=False)
        for name, record in records.items():
            self._finished(name, record)

    def _started(self, name: str) -> None:
        assert self._task is not None
        self._bar.update(self._task, description=f"{self._label}{name}")

    def _finished(self, name: str, record: LayerRecord) -> None:
        assert self._task is not None
        self._mean.add(loss_ratio(record) or 0.0)
        ratio = self._mean.value or 1.0
        self._bar.update(
            self._task, advance=self._sizes[name], loss=f"loss {ratio:.3f} of NoWag-P's"
        )

    def say(self, text: str) -> None:
        """A line above the bar, also where none is drawn."""
        self._bar.console.print(text, highlight=False)

    def step(self, done: int, total: int, held_out: float) -> None:
        """What the tuning that follows calls, with the latest divergence on held-out windows."""
        assert self._task is not None
        self._bar.update(
            self._task,
            description=f"{self._label}tuning",
            completed=done,
            total=total,
            loss=f"held-out divergence {held_out:.4f}",
        )


class WindowProgress:
    """A context manager; the bar counts windows of a text."""

    def __init__(self, name: str) -> None:
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task(name, total=None)

    def __enter__(self) -> WindowProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, done: int, total: int) -> None:
        """What `evaluate` calls."""
        self._bar.update(self._task, completed=done, total=total)
