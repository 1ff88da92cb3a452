"""JobQueue: which job is next."""

from __future__ import annotations

from armor.engines.job import Job


class JobQueue:
    """Jobs that wait for a worker: urgent ones in order, then the largest."""

    def __init__(self) -> None:
        self._waiting: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, number: int, job: Job) -> None:
        """One more."""
        self._waiting[number] = job

    def take(self, slot: int = 0, slots: int = 1) -> tuple[int, Job]:
        """The next job for worker `slot` of `slots`; it gets the parts that it had, if it can."""

        def rank(number: int) -> tuple[bool, bool, int, int]:
            job = self._waiting[number]
            elsewhere = job.part is not None and job.part % slots != slot
            return not job.urgent, elsewhere, -job.size, number

        number = min(self._waiting, key=rank)
        return number, self._waiting.pop(number)

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()
