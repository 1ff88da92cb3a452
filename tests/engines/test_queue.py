"""Which job is next."""

from __future__ import annotations

from typing import Any

from armor.engines.job import Job, Result
from armor.engines.queue import JobQueue


def nothing(_context: Any) -> Result:
    """A job without work."""
    return Result()


def test_the_largest_job_goes_first() -> None:
    queue = JobQueue()
    for number, (size, urgent) in enumerate([(1, False), (5, False), (0, True), (3, False)]):
        queue.add(number, Job(nothing, {}, size=size, urgent=urgent))
    assert [queue.take()[0] for _ in range(len(queue))] == [2, 1, 3, 0]
    for part in range(4):
        queue.add(part, Job(nothing, {}, part=part, urgent=True))
    assert [queue.take(1, 2)[0] for _ in range(4)] == [1, 3, 0, 2]
