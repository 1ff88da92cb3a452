"""Team: who computes the parts of a step: this process, or workers of an engine side by side.

Which parts a step has, and the order of their sum, do not depend on it; so neither do the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from armor.engines.engine import Done, Engine, Scheduler
from armor.engines.job import Job, Result, Tensors
from armor.engines.registry import Setup, open_engine
from armor.memory import give_freed_memory
from armor.tuning.learner import Learner, Spec, open_learner
from armor.tuning.student import Student


class Team(Protocol):
    """Computes with what is trained.

    Attributes:
        student: what is trained, in this process.
    """

    student: Student

    def gradients(self, parts: Sequence[Tensor], share: float) -> Iterator[tuple[float, Tensors]]:
        """Of each of `parts` in order, see `Learner.gradients`."""

    def divergences(self, parts: Sequence[Tensor]) -> Iterator[float]:
        """Of each of `parts` in order, see `Learner.divergence`."""

    def close(self) -> None:
        """Stop all work at once."""


class Alone:
    """This process."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self.student = learner.student

    def gradients(self, parts: Sequence[Tensor], share: float) -> Iterator[tuple[float, Tensors]]:
        return (self._learner.gradients(part, share) for part in parts)

    def divergences(self, parts: Sequence[Tensor]) -> Iterator[float]:
        return (self._learner.divergence(part) for part in parts)

    def close(self) -> None:
        give_freed_memory()


class Crew:
    """Workers of an engine, which get what is trained anew for every step."""

    def __init__(self, student: Student, engine: Engine) -> None:
        """`student` is on the CPU."""
        self.student = student
        self._scheduler = Scheduler(engine)

    def gradients(self, parts: Sequence[Tensor], share: float) -> Iterator[tuple[float, Tensors]]:
        engine = self._scheduler.engine
        for done in self._side_by_side(_gradients, parts, {"share": share}):
            (handle,) = done.handles
            yield done.value, engine.fetch(handle)
            engine.drop(handle)

    def divergences(self, parts: Sequence[Tensor]) -> Iterator[float]:
        for done in self._side_by_side(_divergence, parts, {}):
            for handle in done.handles:
                self._scheduler.engine.drop(handle)
            yield done.value

    def close(self) -> None:
        self._scheduler.engine.close()

    def _side_by_side(
        self,
        function: Callable[..., Result],
        parts: Sequence[Tensor],
        arguments: Mapping[str, object],
    ) -> Iterator[Done]:
        engine = self._scheduler.engine
        trained = {name: p.detach() for name, p in self.student.trained.items()}
        handle = engine.share(trained)
        jobs = [
            Job(
                function,
                {"windows": part.tolist(), **arguments},
                {"trained": handle},
                threads=torch.get_num_threads(),
                label="a step of the tuning",
            )
            for part in parts
        ]
        yield from self._scheduler.in_order(jobs)
        engine.drop(handle)


def make_team(spec: Spec, engine: str, workers: int | None, device: str, scratch: Path) -> Team:
    """This process where it is enough, else a crew.

    Args:
        engine, workers: as asked for. device: "cpu", "cuda" or "cuda:N".
        scratch: a folder for files of no lasting value.

    Raises:
        ArmorError: the engine cannot be had, or there is too little memory.
    """
    if engine == "local" and workers == 1:
        return Alone(Learner(spec, device))
    setup = Setup(
        make_context=partial(open_learner, spec),
        here=partial(Learner, spec, device),
        device=device,
        workers=workers,
        sensible_workers=lambda: 1,
        scratch=scratch,
        budget=None,
    )
    return Crew(spec.student("cpu"), open_engine(engine, setup))


def sensible_workers(asked: int | None, device: str, parts: int) -> int:
    """Of this machine: as many as were `asked` for, else one a GPU; none without a part to do."""
    gpus = torch.cuda.device_count() if device == "cuda" else 1
    return min(asked or gpus, parts)


def _gradients(
    learner: Learner, windows: list[list[int]], share: float, trained: Tensors
) -> Result:
    learner.take(trained)
    loss, found = learner.gradients(_ids(windows), share)
    return Result(loss, (found,))


def _divergence(learner: Learner, windows: list[list[int]], trained: Tensors) -> Result:
    learner.take(trained)
    return Result(learner.divergence(_ids(windows)), ({},))


def _ids(windows: list[list[int]]) -> Tensor:
    return torch.tensor(windows, dtype=torch.int64, device="cpu")
