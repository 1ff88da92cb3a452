"""State: what an interrupted run of tuning goes on from, on the disk."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from armor.checkpoint.tensorfile import map_file
from armor.checkpoint.tuning import Curve
from armor.run.unfinished import Unfinished

_FILE = "tuning.safetensors"


class State(Unfinished):
    """The folder of an unfinished run of tuning: one file, which each judgement replaces.

    Attributes:
        resumed: the steps that an earlier run had taken.
    """

    resumed = 0

    def clear(self) -> None:
        """Forget what an earlier run has left: another begins."""
        (self.folder / _FILE).unlink(missing_ok=True)

    def load(self) -> tuple[int, Curve, dict[str, Tensor]] | None:
        """Steps taken, the curve, and tensors by name; None of a run that begins."""
        path = self.folder / _FILE
        about = self.sound(path)
        curve = None if about is None else Curve.read(about["curve"])
        if about is None or curve is None:
            return None
        self.resumed = int(about["step"])
        # Copies: the file is replaced while they are in use.
        tensors = {name: tensor.clone() for name, tensor in map_file(path).items()}
        return self.resumed, curve, tensors

    def save(self, step: int, curve: Curve, tensors: dict[str, Tensor]) -> None:
        """Keep them in the place of what was saved before.

        Raises:
            ArmorError: a full disk, or another process has taken over.
        """
        self.check_lock()
        about: dict[str, Any] = {"step": step, "curve": curve.to_dict()}
        self.write(self.folder / _FILE, tensors, about)
