"""How idle OpenMP threads wait for their next work. Read when torch loads, so set before."""

from __future__ import annotations

from collections.abc import MutableMapping

#: Looks of GNU's OpenMP before a thread sleeps: a few microseconds, enough from one product of a
#: solve to the next. Without them two threads solve a matrix of 576x1536 no faster than one does.
_LOOKS = "1000"


def let_idle_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Let them sleep, almost at once, instead of spinning, unless `environment` says how they wait.

    On a busy or shared machine that is the difference between a slowdown by the number of
    neighbours and one by a factor of ten.
    """
    if environment.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
        environment.setdefault("GOMP_SPINCOUNT", _LOOKS)
