"""TuningRecord: what a tuning has come to, as armor_run.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from armor.checkpoint.jsonfile import number

_PARTS = "held_out", "trained"


@dataclass
class Curve:
    """The divergence from the dense model, KL in nats a token, by the number of steps taken.

    Attributes:
        held_out: on windows that are never trained on; 0 is before the first step.
        trained: the mean of the steps since the judgement before.
    """

    held_out: dict[int, float] = field(default_factory=dict)
    trained: dict[int, float] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The number of steps after which the model was best; the first of equals."""
        return min(self.held_out, key=lambda step: (self.held_out[step], step))

    @property
    def before(self) -> float:
        """The divergence before the first step."""
        return self.held_out[0]

    @property
    def after(self) -> float:
        """That of the steps that are kept: never above `before`."""
        return self.held_out[self.best]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            name: {str(step): value for step, value in getattr(self, name).items()}
            for name in _PARTS
        }

    @classmethod
    def read(cls, data: Any) -> Curve | None:
        """The inverse of `to_dict`; None of anything else."""
        parts = [data.get(name) if isinstance(data, dict) else None for name in _PARTS]
        found: list[dict[int, float]] = []
        for part in parts:
            if not isinstance(part, dict) or not all(step.isdecimal() for step in part):
                return None
            values = {int(step): number(value) for step, value in part.items()}
            found.append({step: value for step, value in values.items() if value is not None})
        return cls(*found)


@dataclass(frozen=True)
class TuningRecord:
    """A tuning that came after the pruning.

    Attributes:
        kind: such as "full". curve: of the run; its best step is what is stored.
        seconds: of the tuning alone.
    """

    kind: str
    curve: Curve
    seconds: float | None

    @classmethod
    def read(cls, data: Any) -> TuningRecord | None:
        """Of a run's ``tuning``; None if it has no sound one."""
        if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
            return None
        curve = Curve.read(data.get("curve"))
        if curve is None or 0 not in curve.held_out:
            return None
        return cls(data["kind"], curve, number(data.get("seconds")))

    def to_dict(self) -> dict[str, Any]:
        """The entry in `inspect`."""
        return {
            "kind": self.kind,
            "before": self.curve.before,
            "after": self.curve.after,
            "best_step": self.curve.best,
            "steps": max(self.curve.held_out),
            "seconds": self.seconds,
        }
