"""Recorder: turns the callbacks of a run into events, and hands each to every sink."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime, timezone
from typing import Any, Protocol

from armor.checkpoint.records import LayerRecord
from armor.memory import peak_memory
from armor.run.plan import LayerPlan
from armor.run.prune import Progress
from armor.versions import versions

#: Of the events; grows when a field changes its meaning or goes.
SCHEMA = 1


class Sink(Protocol):
    """Takes events: mappings with ``time``, ``kind``, ``run`` and the fields of their kind."""

    def write(self, event: Mapping[str, Any]) -> None:
        """Take one event."""

    def close(self) -> None:
        """The run is over."""


class Recorder:
    """The events of one run, in order, to every one of `sinks`."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._run = secrets.token_hex(4)

    def emit(self, kind: str, **values: Any) -> None:
        """Hand an event of `kind` with these fields to every sink."""
        moment = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        event = {"time": moment, "kind": kind, "run": self._run, **values}
        for sink in self._sinks:
            sink.write(event)

    @contextmanager
    def run(self, command: str, **values: Any) -> Iterator[None]:
        """Around the work: ``run_started``, then ``run_finished``, ``run_failed`` or
        ``run_interrupted``; closes the sinks."""
        begin = time.perf_counter()
        used = versions("armor", "python", "torch", "transformers")
        self.emit("run_started", schema=SCHEMA, command=command, versions=used, **values)
        try:
            yield
        except KeyboardInterrupt:
            self.emit("run_interrupted", seconds=_since(begin))
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            self.emit("run_failed", seconds=_since(begin), type=type(error).__name__, error=text)
            raise
        else:
            self.emit("run_finished", seconds=_since(begin), peak_memory_bytes=peak_memory())
        finally:
            for sink in self._sinks:
                sink.close()

    def progress(self, label: str | None = None) -> Progress:
        """The callbacks for `armor.prune`; `label` goes into each of their events."""
        layers: list[str] = []
        finished: list[str] = []
        common = {} if label is None else {"label": label}

        def measured(name: str, number: int, total: int) -> None:
            self.emit("layer_measured", **common, layer=name, number=number, layers=total)

        def planned(plans: list[LayerPlan]) -> None:
            layers[:] = [plan.name for plan in plans if not plan.dense]
            sizes = (plan.shape[0] * plan.shape[1] for plan in plans if not plan.dense)
            dense = {plan.name: plan.note for plan in plans if plan.dense}
            self.emit(
                "run_planned", **common, layers=len(layers), weights=sum(sizes), dense_layers=dense
            )

        def started(name: str) -> None:
            self.emit("layer_started", **common, layer=name)

        def done(name: str, record: LayerRecord) -> None:
            finished.append(name)
            place = {"layer": name, "number": len(finished), "layers": len(layers)}
            self.emit("layer_finished", **common, **place, **record.to_dict())

        def resumed(records: dict[str, LayerRecord], damaged: list[str]) -> None:
            finished.extend(records)
            self.emit("run_resumed", **common, finished=list(records), damaged=damaged)

        return Progress(measured, planned, started, done, resumed)


def combine_progress(first: Progress, second: Progress) -> Progress:
    """Callbacks that call the `first`'s, then the `second`'s."""

    def pair(name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            getattr(first, name)(*arguments)
            getattr(second, name)(*arguments)

        return call

    return Progress(**{field.name: pair(field.name) for field in fields(Progress)})


def _since(begin: float) -> float:
    return round(time.perf_counter() - begin, 3)
