"""Placement: where a run computes. Nothing of it but the device changes the result."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from armor.config import PruneConfig
from armor.device import resolve_device
from armor.engines.engine import Engine
from armor.engines.registry import Setup, check_engine, open_engine
from armor.errors import ArmorError
from armor.factorize.sweep import STEPWISE, choose_backend
from armor.memory import available_memory
from armor.methods import METHODS
from armor.models.streamed import StreamedModel
from armor.run.plan import LayerPlan
from armor.run.streams import PARTS
from armor.run.threads import SHARED_FROM
from armor.run.worker import Spec, Worker, open_worker
from armor.sparse.pattern import Pattern

#: As many weights are worth worker processes, however small the matrices.
POOL_FROM = 2**24
#: A solve takes about so many times the memory of its matrix in float32.
_SOLVE = 16


@dataclass(frozen=True)
class Placement:
    """Where a run computes.

    Attributes:
        engine: see `armor.engines.registry`. workers: how many, None for as many as make sense.
        device: "cpu", "cuda" or "cuda:N".
        budget: bytes of activations held in memory, None for half of what is free.
    """

    engine: str
    workers: int | None
    device: str
    budget: int | None

    @classmethod
    def parse(cls, engine: str, workers: int | None, device: str, budget: int | None) -> Placement:
        """From what the user asked for.

        Raises:
            ArmorError: an unknown engine or device, no GPU, or a number that makes no sense.
        """
        check_engine(engine)
        if workers is not None and workers < 1:
            raise ArmorError(f"--workers must be at least 1, not {workers}")
        # A cluster's GPUs are not this machine's.
        return cls(engine, workers, resolve_device(device, remote=engine != "local"), budget)

    def open(
        self, spec: Spec, model: StreamedModel, plans: Sequence[LayerPlan], scratch: Path
    ) -> Engine:
        """The engine. Raises `ArmorError` if it cannot be had."""
        return open_engine(
            self.engine,
            Setup(
                make_context=partial(open_worker, spec),
                here=lambda: Worker(spec, model, self.device),
                device=self.device,
                workers=self.workers,
                sensible_workers=lambda: sensible_workers(model, plans),
                scratch=scratch,
                budget=self.budget,
            ),
        )


def warn_of_slow_patterns(plans: Sequence[LayerPlan], config: PruneConfig, device: str) -> None:
    """Say which patterns a GPU solves slowly, if there are any."""
    if slow := slow_patterns(plans, config, device):
        logging.getLogger("armor").warning(
            "the solver has no GPU kernel for %s (or Triton is not installed): it takes minutes a"
            " layer there; --device cpu may be faster",
            ", ".join(slow),
        )


def slow_patterns(plans: Sequence[LayerPlan], config: PruneConfig, device: str) -> list[str]:
    """The patterns for whose solver there is no kernel on `device`, a GPU."""
    where = torch.device(device)
    if where.type != "cuda" or config.solver != "exact":
        return []
    settings = [plan.settings(config) for plan in plans if not plan.dense]
    asked = {own.pattern for own in settings if METHODS[own.method].wrappers}
    return sorted(
        pattern
        for pattern in asked
        if choose_backend(Pattern.parse(pattern), torch.float32, where).name in STEPWISE
    )


def sensible_workers(model: StreamedModel, plans: Sequence[LayerPlan]) -> int:
    """On the CPU: one where there is little to do, as processes take seconds to start; else as many
    as there are cores and memory for."""
    entries = [plan.shape[0] * plan.shape[1] for plan in plans]
    largest = max(entries)
    if largest < SHARED_FROM and sum(entries) < POOL_FROM:
        return 1
    block = sum(tensor.numel() for tensor in model.structure.blocks[0].parameters())
    fitting = available_memory() // (4 * (2 * block + _SOLVE * largest))
    return max(1, min(torch.get_num_threads(), PARTS, fitting))
