"""TuneConfig: every choice of a tuning run in one frozen, validated dataclass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from armor.errors import ArmorError
from armor.text.bos import BOS_CHOICES, bos_choice

#: What ``--tune`` takes.
OFF, BLOCK, FULL = "off", "block", "full"
TUNINGS = (OFF, BLOCK, FULL)
#: Steps by default.
STEPS = {BLOCK: 60, FULL: 300}
#: Windows that are never trained on; of a short text at most the eighth part.
HELD_OUT, HELD_OUT_SHARE = 8, 8
#: Windows that are taken of a long text for "block", which holds what the blocks make of them.
MOST_SAMPLES = 512
#: Blocks that "block" trains together: two win back more than one each, and take twice its memory.
BLOCKS = 2
#: Tokens of a window where nothing says another number.
MOST_TOKENS = 512
#: Tokens of a step that pass through the models together, or one window.
TOKENS = 2048


@dataclass(frozen=True)
class TuneConfig:
    """How to tune. Invalid values raise `ArmorError` on construction.

    Attributes:
        mode: "full" (end to end) or "block" (`BLOCKS` decoder blocks at a time).
        calibration: text file, .jsonl file, ``hf:NAME[:CONFIG]`` or a tuple of strings; empty takes
            that of the pruning run.
        samples: windows of the text, `HELD_OUT` of them to judge by; None takes what there is, at
            most `MOST_SAMPLES` for "block", and for "full" those that its steps can see once.
        seq_len: tokens a window. bos: "always", "never" or "auto", as in `PruneConfig`. None takes
            what the pruning run had.
        steps: of the optimiser, of "block" each time; None takes `STEPS`.
        batch: windows of a step; None takes `TOKENS`. More of them are computed part by part,
            side by side where there are several workers. Of "full" alone.
        step_size: the first steps move each tensor by this share of its root mean square.
        seed: draws the windows, and of those to train on the order.
    """

    mode: str = FULL
    calibration: str | tuple[str, ...] = ()
    samples: int | None = None
    seq_len: int | None = None
    bos: str | None = None
    steps: int | None = None
    batch: int | None = None
    step_size: float = 6e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in STEPS:
            raise ArmorError(f"unknown tuning {self.mode!r}; valid: {', '.join(STEPS)}")
        if not isinstance(self.calibration, str):
            object.__setattr__(self, "calibration", tuple(self.calibration))
        object.__setattr__(self, "bos", bos_choice(self.bos))
        if self.bos not in (None, *BOS_CHOICES):
            raise ArmorError(f"unknown bos {self.bos!r}; valid: {', '.join(BOS_CHOICES)}")
        for name in ("samples", "seq_len", "steps", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArmorError(f"{name} must be at least 1, not {value}")
        if self.batch is not None and self.mode == BLOCK:
            raise ArmorError("batch is of the mode full alone: leave it out, or take that mode")
        if not self.step_size > 0.0:
            raise ArmorError(f"step_size must be positive, not {self.step_size}")

    @property
    def step_count(self) -> int:
        """`steps`, or as many as the mode takes."""
        return self.steps or STEPS[self.mode]

    def windows_of_step(self, seq_len: int) -> int:
        """`batch`, or as many of so many tokens as pass together."""
        return self.batch or max(1, TOKENS // seq_len)

    def most_samples(self, seq_len: int) -> int:
        """Windows that are taken of a long text, of so many tokens each."""
        if self.samples is not None:
            return self.samples
        if self.mode == BLOCK:
            return MOST_SAMPLES
        return self.step_count * self.windows_of_step(seq_len) + HELD_OUT

    def to_dict(self) -> dict[str, Any]:
        """A plain JSON-ready dict."""
        return dataclasses.asdict(self)
