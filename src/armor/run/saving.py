"""Saving: threads write and hash what a GPU holds, so that the GPU does not wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Event, Thread
from typing import TypeVar

from armor.engines.job import Tensors

Found = TypeVar("Found")
#: Parts of the activations, by name.
Parts = Iterable[tuple[str, Tensors]]


class Stopped(Exception):
    """What is being saved is not wanted any more."""


class Saving:
    """One piece of work at a time beside that of the caller, to whom its error comes back."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._stop = Event()

    def is_busy(self) -> bool:
        """Whether it has not ended yet."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[Callable[[], None]], None]) -> None:
        """Begin; nothing else may be going on.

        Args:
            work: gets a function to call now and then, which raises `Stopped` if it is to end.
        """
        self.check()
        self._stop.clear()

        def run() -> None:
            try:
                work(self._check_stop)
            except Stopped:
                pass
            except BaseException as error:
                self._error = error

        self._thread = Thread(target=run, name="armor-saving")
        self._thread.start()

    def check(self) -> None:
        """Raise the error that it ended with, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def stop(self) -> None:
        """End it as soon as may be, and wait for that; its error is of no interest any more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = self._error = None

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped


def later(work: Callable[[], Found], beside: bool) -> Callable[[], Found]:
    """Do `work`, in a thread if `beside`; what is returned waits for its result, or raises its
    error."""
    found: Future[Found] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    if beside:
        Thread(target=run, name="armor-later", daemon=True).start()
    else:
        run()
    return found.result


def is_on_gpu(tensors: Tensors) -> bool:
    """Whether they have to be copied before the host can write them."""
    return any(tensor.device.type != "cpu" for tensor in tensors.values())


def to_host(tensors: Tensors) -> Tensors:
    """Copies that stay as they are."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
