"""What the doctor tries, one after the other, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

#: The verdict of what was tried and is wrong begins with it.
FAILED = "wrong"


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        what, where: such as "runtime triton" and "int8 cores, bfloat16".
        verdict: "ok", `FAILED`, or why it was not tried.
        figure: the error relative to the reference (the largest of them), or what the verdict says.
        trials: how many comparisons it sums up.
    """

    what: str
    where: str
    verdict: str
    figure: float | None = None
    trials: int = 1

    @property
    def failed(self) -> bool:
        """Whether it was tried and is wrong."""
        return self.verdict.startswith(FAILED)


class Trial(NamedTuple):
    """One comparison.

    Attributes:
        where: such as "256x512, 16 rows".
        run: the error relative to the reference, see `apart`; whatever it raises is a finding.
        refusal: why it cannot be run; "" if it can.
    """

    where: str
    run: Callable[[], float]
    refusal: str = ""


def compare(what: str, where: str, trials: Iterable[Trial], tolerance: float) -> Iterator[Check]:
    """A line for each trial that fails or cannot be run, then one for all those that are right."""
    errors = []
    for trial in trials:
        place = f"{trial.where}, {where}"
        if trial.refusal:
            yield Check(what, place, trial.refusal)
            continue
        try:
            error = trial.run()
        except Exception as raised:  # whatever a compiler or a driver raises
            yield broken(what, place, raised)
            continue
        if (check := judged(what, place, error, tolerance)).failed:
            yield check
        else:
            errors.append(error)
    if errors:
        yield Check(what, where, "ok", max(errors), len(errors))


def judged(what: str, where: str, error: float, tolerance: float) -> Check:
    """The line of one comparison; an error that is not a number is wrong."""
    return Check(what, where, "ok" if error <= tolerance else FAILED, error)


def broken(what: str, where: str, error: Exception) -> Check:
    """The line of what raised `error`."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return Check(what, where, f"{FAILED}: {line}")


def apart(found: Tensor, expected: Tensor) -> float:
    """How far `found` is from `expected`, relative to the norm of this."""
    if found.shape != expected.shape:
        raise ValueError(f"the result is {tuple(found.shape)}, not {tuple(expected.shape)}")
    return float((found.float() - expected).norm() / expected.norm())
