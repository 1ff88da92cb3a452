"""The activation streams of a run: where they start, and where an interrupted run finds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from armor.calibrate.stream import BlockCalls, batches, open_stream
from armor.checkpoint.tensorfile import map_file
from armor.config import PruneConfig
from armor.engines.engine import Engine
from armor.engines.job import Handle, Tensors
from armor.methods import METHODS, Stream
from armor.models.streamed import StreamedModel
from armor.run.store import Store

#: The windows are divided into at most so many parts, whatever the number of workers: the moments
#: of each part are summed by one worker, then added in order. So the bytes do not depend on it.
PARTS = 8


@dataclass
class Streams:
    """Hidden states at the input of block `index`, as an engine's handles, part by part.

    Attributes:
        dense: of the dense model; None if no layer needs it. pruned: of the model as pruned so far;
            None if it is the dense one's.
    """

    index: int
    dense: list[Handle] | None
    pruned: list[Handle] | None

    def handles(self) -> set[Handle]:
        """Every handle."""
        return {*(self.dense or ()), *(self.pruned or ())}

    def named(self) -> Iterator[tuple[str, Handle]]:
        """Every handle, under a name."""
        for name in ("dense", "pruned"):
            for part, handle in enumerate(getattr(self, name) or ()):
                yield f"{name}-{part}", handle


def stream_kinds(config: PruneConfig) -> tuple[Stream, ...]:
    """The activation streams that a run needs."""
    method = METHODS[config.method]
    if method.wrappers:
        return ("dense",) if config.target == "dense" else ("dense", "pruned")
    return (method.statistics,)


def calls_of(model: StreamedModel, windows: Tensor) -> tuple[BlockCalls, list[Tensors]]:
    """How every block is called, and the hidden states at the input of block 0, part by part."""
    calls: BlockCalls = [{} for _ in model.structure.blocks]
    hidden: list[Tensor] = []
    with model.first_block_loaded(), torch.no_grad():
        for states, called in open_stream(model.model, model.structure, batches(windows)):
            hidden.append(states)
            for known, call in zip(calls, called, strict=True):
                known.setdefault(states.shape[0], call)
    size = -(-len(hidden) // PARTS)
    return calls, [
        {str(number): hidden[number] for number in range(start, min(start + size, len(hidden)))}
        for start in range(0, len(hidden), size)
    ]


def start(
    engine: Engine, store: Store, hidden: list[Tensors], first: int, kinds: tuple[Stream, ...]
) -> Streams:
    """The streams of `kinds` ("dense", "pruned") as late as the store has them, but not after block
    `first`, where the first layer is missing."""
    streams = Streams(0, None, None)
    if (found := store.activations(first)) is not None:
        streams.index, files = found
        for kind in kinds:
            names = [f"{kind}-{part}" for part in range(len(hidden))]
            setattr(streams, kind, [engine.share(map_file(files[name])) for name in names])
        return streams
    handles = [engine.share(part) for part in hidden]
    for kind in kinds:
        setattr(streams, kind, handles)
    return streams
