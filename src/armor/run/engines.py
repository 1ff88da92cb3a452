"""Choosing the engine of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from armor.errors import ArmorError
from armor.models.streamed import StreamedModel
from armor.run.engine import Engine, InProcess
from armor.run.memory import available_memory
from armor.run.plan import LayerPlan
from armor.run.worker import Spec, Worker

ENGINES = ("local",)


class Where:
    """Where a run computes.

    Attributes:
        engine: see `ENGINES`. workers: how many, None for as many as make sense.
        device: "cpu" or "cuda". budget: bytes of activations held in memory.

    Raises:
        ArmorError: an unknown engine or device, no GPU, or a number that makes no sense.
    """

    def __init__(
        self, engine: str, workers: int | None, device: str, budget: int | None = None
    ) -> None:
        if engine not in ENGINES:
            raise ArmorError(f"unknown engine {engine!r}; valid: {', '.join(ENGINES)}")
        if workers is not None and workers < 1:
            raise ArmorError(f"--workers must be at least 1, not {workers}")
        if device not in ("auto", "cpu", "cuda"):
            raise ArmorError(f"unknown device {device!r}; valid: auto, cpu, cuda")
        if device == "cuda" and not torch.cuda.is_available():
            raise ArmorError("no CUDA device is available; use --device cpu")
        use_gpu = device != "cpu" and torch.cuda.is_available()
        self.engine = engine
        self.workers = workers
        self.device = "cuda" if use_gpu else "cpu"
        self.budget = available_memory() // 2 if budget is None else budget


def open_engine(
    where: Where, spec: Spec, model: StreamedModel, plans: Sequence[LayerPlan], scratch: Path
) -> Engine:
    """The engine that `where` asks for. Raises `ArmorError` if it cannot be had."""
    return InProcess(Worker(spec, model), scratch, where.budget)
