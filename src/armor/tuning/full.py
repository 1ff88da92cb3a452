"""full: the whole model, end to end, on the dense model's predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from armor.checkpoint.tuning import Curve
from armor.errors import ArmorError
from armor.tuning.config import TuneConfig
from armor.tuning.divergence import divergence
from armor.tuning.keeper import Keeper, Text
from armor.tuning.steps import Steps, order
from armor.tuning.student import Student

#: How often the held-out windows judge.
JUDGEMENTS = 10
#: Tokens of a step, or one window: they pass through the models together.
TOKENS = 2048


class FullTuning:
    """A run of steps on the predictions of a dense model.

    Args:
        dense: the dense model. lowered: whether products are computed in bfloat16.
        stepped: called with the steps taken, their total and the latest divergence on held-out
            windows and on trained ones.
    """

    def __init__(
        self,
        student: Student,
        dense: Any,
        text: Text,
        config: TuneConfig,
        lowered: bool,
        keeper: Keeper,
        stepped: Callable[[int, int, float, float], None],
    ) -> None:
        self._student = student
        self._dense = dense
        self._text = text
        self._config = config
        self._lowered = lowered
        self._keeper = keeper
        self._stepped = stepped
        self._total = config.step_count
        self._steps = Steps(student.trained, config.step_size, self._total)

    def run(self) -> tuple[dict[str, Tensor], Curve]:
        """What is trained as the checkpoint is to have it, by name (nothing where no step lowered
        the loss), and the curve.

        Raises:
            ArmorError: the loss is not finite.
        """
        total = self._total
        first, curve, best = self._resume()
        if not first:
            curve.held_out[0] = self._judge()
        losses: list[float] = []
        together = max(1, TOKENS // self._text.train.shape[1])
        batches = order(len(self._text.train), together, total, self._config.seed)
        for step, chosen in enumerate(batches):
            if step < first:
                continue
            losses.append(self._step(step, chosen))
            done = step + 1
            if done % max(1, total // JUDGEMENTS) == 0 or done == total:
                curve.held_out[done] = self._judge()
                curve.trained[done] = sum(losses) / len(losses)
                losses = []
                if curve.best == done:
                    best = self._student.stored()
                self._save(done, curve, best)
            latest = curve.held_out[max(curve.held_out)]
            self._stepped(done, total, latest, losses[-1] if losses else curve.trained[done])
        return best, curve

    def _step(self, number: int, chosen: list[int]) -> float:
        """One step on the `chosen` windows; the divergence on them before it."""
        windows = self._text.train[chosen]
        self._student.merge()
        loss = 0.0
        for part in self._parts(windows):
            found = self._divergence(part) / windows.numel()
            found.backward()
            loss += float(found.detach())
        self._student.pull_back()
        if not math.isfinite(loss):
            raise ArmorError(
                f"tuning: the divergence from the dense model is {loss} at step {number + 1}: give"
                " a smaller --step-size"
            )
        self._steps.take(number)
        return loss

    @torch.no_grad()
    def _judge(self) -> float:
        """The divergence on the held-out windows, of what would be stored, in nats a token."""
        windows = self._text.held_out
        with self._student.rounded():
            total = sum(float(self._divergence(part)) for part in self._parts(windows))
        return total / windows.numel()

    @staticmethod
    def _parts(windows: Tensor) -> tuple[Tensor, ...]:
        """The `windows` that pass through the models together."""
        return windows.split(max(1, TOKENS // windows.shape[1]))

    def _divergence(self, windows: Tensor) -> Tensor:
        """The sum over the tokens of `windows`."""
        with self._precision():
            with torch.no_grad():
                reference = self._dense(input_ids=windows, use_cache=False).logits
            logits = self._student.model(input_ids=windows, use_cache=False).logits
        return divergence(logits.flatten(0, 1), reference.flatten(0, 1))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        device = self._text.train.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._lowered):
            yield

    def _resume(self) -> tuple[int, Curve, dict[str, Tensor]]:
        """Steps taken before, the curve, and what was best."""
        found = self._keeper.load()
        if found is None:
            return 0, Curve(), {}
        step, curve, tensors = found
        parts: dict[str, dict[str, Tensor]] = {"best": {}, "exact": {}, "adam": {}}
        for name, tensor in tensors.items():
            kind, _, own = name.partition("/")
            parts[kind][own] = tensor
        with torch.no_grad():
            for name, parameter in self._student.trained.items():
                parameter.copy_(parts["exact"][name])
        self._steps.restore(parts["adam"])
        return step, curve, parts["best"]

    def _save(self, step: int, curve: Curve, best: dict[str, Tensor]) -> None:
        tensors = {f"best/{name}": tensor for name, tensor in best.items()}
        for name, parameter in self._student.trained.items():
            tensors[f"exact/{name}"] = parameter.detach().cpu()
        for name, tensor in self._steps.state().items():
            tensors[f"adam/{name}"] = tensor.cpu()
        self._keeper.save(step, curve, tensors)
