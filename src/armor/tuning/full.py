"""full: the whole model, end to end, on the dense model's predictions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from armor.checkpoint.tuning import Curve
from armor.errors import ArmorError
from armor.tuning.config import TOKENS, TuneConfig
from armor.tuning.keeper import Keeper, Text
from armor.tuning.steps import Steps, order
from armor.tuning.team import Team

#: How often the held-out windows judge.
JUDGEMENTS = 10


class FullTuning:
    """A run of steps on the predictions of a dense model.

    Args:
        team: who computes.
        stepped: called with the steps taken, their total and the latest divergence on held-out
            windows and on trained ones.
    """

    def __init__(
        self,
        team: Team,
        text: Text,
        config: TuneConfig,
        keeper: Keeper,
        stepped: Callable[[int, int, float, float], None],
    ) -> None:
        self._team = team
        self._student = team.student
        self._text = text
        self._config = config
        self._keeper = keeper
        self._stepped = stepped
        self._total = config.step_count
        self._steps = Steps(self._student.trained, config.step_size, self._total)

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
        together = self._config.windows_of_step(self._text.train.shape[1])
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
        loss, summed = 0.0, dict[str, Tensor]()
        for own, gradients in self._team.gradients(parts(windows), 1.0 / windows.numel()):
            loss += own
            for name, gradient in gradients.items():
                summed[name] = summed[name] + gradient if name in summed else gradient
        if not math.isfinite(loss):
            raise ArmorError(
                f"tuning: the divergence from the dense model is {loss} at step {number + 1}: give"
                " a smaller --step-size"
            )
        for name, gradient in summed.items():
            self._student.trained[name].grad = gradient
        self._steps.take(number)
        return loss

    def _judge(self) -> float:
        """The divergence on the held-out windows, of what would be stored, in nats a token."""
        windows = self._text.held_out
        return sum(self._team.divergences(parts(windows))) / windows.numel()

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


def parts(windows: Tensor) -> tuple[Tensor, ...]:
    """The `windows` that pass through the models together, whoever computes them."""
    return windows.split(max(1, TOKENS // windows.shape[1]))
