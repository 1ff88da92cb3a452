"""The activation streams of a run: where they start, and where an interrupted run finds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from armor.calibrate.call import BlockCalls
from armor.calibrate.stream import batches, open_stream
from armor.checkpoint.folder import full_disk
from armor.checkpoint.tensorfile import map_file, write_file
from armor.config import PruneConfig
from armor.engines.engine import Engine
from armor.engines.job import Handle, Tensors
from armor.methods import METHODS, Stream
from armor.models.streamed import StreamedModel
from armor.run.precision import bfloat16_devices
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
        own: see `Opened`.
    """

    index: int
    dense: list[Handle] | None
    pruned: list[Handle] | None
    own: list[list[Tensors]]

    def own_arguments(self, engine: Engine) -> list[Handle]:
        """The arguments of the block at hand that differ from batch to batch, part by part."""
        blocks = len(self.own)
        return [engine.share(part) for part in self.own[self.index]] if self.index < blocks else []

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


@dataclass(frozen=True)
class Opened:
    """What the blocks of a model are given.

    Attributes:
        calls: how every block is called.
        hidden: the hidden states at the input of block 0, part by part, by batch.
        own: for each block, part by part, the arguments that differ from batch to batch, as
            `BlockCalls.add` returns them but named ``BATCH/NAME``; of a block without any no part.
    """

    calls: BlockCalls
    hidden: list[Tensors]
    own: list[list[Tensors]]


def open_streams(model: StreamedModel, windows: Tensor, scratch: Path | None = None) -> Opened:
    """How every block is called on `windows` (samples, seq), and what the first one is given.

    Args:
        scratch: a folder for arguments that differ from batch to batch, which can be several times
            as large as the hidden states; None holds them in memory.

    Raises:
        ArmorError: see `open_stream`.
    """
    tokens = batches(windows)
    size = -(-len(tokens) // PARTS)
    calls = BlockCalls(bfloat16_devices(model))
    hidden: list[Tensors] = []
    own: list[list[Tensors]] = [[] for _ in model.structure.blocks]
    with model.first_block_loaded(), torch.no_grad():
        stream = open_stream(model.model, model.structure, tokens)
        for number, (states, called) in enumerate(stream):
            if number % size == 0:
                _store(own, scratch)
                hidden.append({})
                for parts in own:
                    parts.append({})
            hidden[-1][str(number)] = states
            for parts, different in zip(own, calls.add(str(number), called), strict=True):
                parts[-1] |= {f"{number}/{name}": value for name, value in different.items()}
    _store(own, scratch)
    return Opened(calls, hidden, [parts if any(parts) else [] for parts in own])


def _store(own: list[list[Tensors]], scratch: Path | None) -> None:
    """Put the latest part of every block's arguments into a file of `scratch`."""
    for index, parts in enumerate(own):
        if scratch is not None and parts and parts[-1]:
            path = scratch / f"arguments-{index}-{len(parts)}.safetensors"
            with full_disk(scratch.parent, path):
                write_file(path, parts[-1], sync=False)
            parts[-1] = map_file(path)


def start(
    engine: Engine, store: Store, opened: Opened, first: int, kinds: tuple[Stream, ...]
) -> Streams:
    """The streams of `kinds` ("dense", "pruned") as late as the store has them, but not after block
    `first`, where the first layer is missing."""
    streams = Streams(0, None, None, opened.own)
    if (found := store.activations(first)) is not None:
        streams.index, files = found
        for kind in kinds:
            names = [f"{kind}-{part}" for part in range(len(opened.hidden))]
            setattr(streams, kind, [engine.share(map_file(files[name])) for name in names])
        return streams
    handles = [engine.share(part) for part in opened.hidden]
    for kind in kinds:
        setattr(streams, kind, handles)
    return streams
