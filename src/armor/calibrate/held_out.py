"""HeldOut: windows that no layer is fitted to, on which each is judged.

A layer that corrects the errors of those before it fits, with every layer, more of what is peculiar
to the calibration text. How much of a correction to believe only other text can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from armor.calibrate.moments import Moments
from armor.calibrate.sample import Sample

#: At most this share of the windows is held out, and so many tokens.
_SHARE, _TOKENS = 8, 4096
#: Tokens on which a layer is judged, held out and fitted ones: each so many at most.
_SAMPLED = 2048


@dataclass(frozen=True)
class HeldOut:
    """Which of the calibration windows are held out: the last `count`.

    Attributes:
        windows: their number. batch: windows that go through the model together.
        stride: from one token that is a sample to the next.
    """

    windows: int
    count: int
    batch: int
    stride: int

    @classmethod
    def of(cls, windows: int, seq_len: int, batch: int) -> HeldOut:
        """For `windows` windows of `seq_len` tokens, in batches of `batch`."""
        count = min(windows // _SHARE, max(1, _TOKENS // seq_len))
        return cls(windows, count, batch, max(1, -(-count * seq_len // _SAMPLED)))

    def split(self, tokens: int, batch: str, rows: int) -> tuple[slice, slice, slice]:
        """Of the tokens of a batch, window by window: those that are fitted, a sample of these, and
        a sample of those held out.

        Args:
            batch: its number. rows: windows in it.
        """
        first = int(batch) * self.batch
        fitted = min(max(self.windows - self.count - first, 0), rows)
        sampled = min(max(self.count - first, 0), fitted)
        cut, seen = tokens * fitted // rows, tokens * sampled // rows
        return slice(0, cut), slice(0, seen, self.stride), slice(cut, tokens, self.stride)

    def add(
        self, moments: Moments, batch: str, rows: int, given: Sample, weight: Tensor | None
    ) -> None:
        """Add what a linear is given in a batch to `moments`.

        Args:
            weight: of the dense linear, (out, in), where no other is given the same; that takes a
                smaller moment.
        """
        tokens = given.flat()
        fitted, seen, unseen = self.split(len(tokens.inputs), batch, rows)
        own = tokens.at(fitted)
        if weight is None:
            moments.add(own.inputs, own.dense)
        else:
            moments.add(own.inputs, missed=own.missed(weight))
        moments.sample("fitted", tokens.at(seen))
        moments.sample("held_out", tokens.at(unseen))
