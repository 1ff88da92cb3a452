"""Plan: what a run of tuning trains, on what, and the memory that it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.tensorfile import StoredTensor
from armor.errors import ArmorError
from armor.memory import available_memory, free_on_device
from armor.tuning.config import BLOCKS

#: Bytes of a number that is trained: itself, its gradient, two moments, and copies to be stored.
_TRAINED = 4 + 4 + 8 + 4
#: Of a weight that is multiplied out: itself, its gradient, one in bfloat16, and its mask.
_MERGED = 4 + 4 + 2 + 1
#: Of a kept value: its position.
_POSITION = 8
#: Of a logit: both models', the gradient, and what the loss makes of a part of them.
_LOGIT = 12
#: Of the residual stream and what norms keep, for each channel of a block.
_CHANNEL = 16


@dataclass(frozen=True)
class Plan:
    """A run, before it starts.

    Attributes:
        trained: numbers that are trained. windows, seq_len: text to train on. steps: in all.
        needed, available: bytes of memory, the first an estimate.
        checkpointed: whether blocks are computed twice, since what they keep would not fit.
    """

    trained: int
    windows: int
    seq_len: int
    steps: int
    needed: int
    available: int
    checkpointed: bool

    def describe(self) -> str:
        """One line."""
        twice = ", blocks computed twice to save memory" if self.checkpointed else ""
        return (
            f"training {self.trained / 1e6:.1f} million numbers for {self.steps} steps on"
            f" {self.windows} windows of {self.seq_len} tokens; about {self.needed / 1e9:.1f} GB of"
            f" {self.available / 1e9:.1f} GB that are free{twice}"
        )


def make_plan(
    checkpoint: Checkpoint,
    dense: Mapping[str, StoredTensor],
    config: Any,
    work: tuple[int, int, int],
    tokens: int,
    lowered: bool,
    available: int,
) -> Plan:
    """What a run takes.

    Args:
        dense: tensors of the dense model. config: of the model, a transformers config.
        tokens: that pass together. lowered: whether products are computed in bfloat16.
        available: bytes, see `room`.

    Raises:
        ArmorError: there is too little memory.
    """
    text = config.get_text_config()
    layers = checkpoint.layers
    kept = sum(_size(checkpoint.tensors[f"{name}.core_values"]) for name in layers)
    weights = sum(rows * cols for rows, cols in (spec.shape for spec in layers.values()))
    trained = _trained(checkpoint)
    rest = sum(
        _size(stored)
        for name, stored in checkpoint.tensors.items()
        if name.rpartition(".")[0] not in layers
    )
    fixed = 4 * (sum(map(_size, dense.values())) + rest)
    fixed += _TRAINED * trained + _MERGED * weights + _POSITION * kept
    fixed += _LOGIT * tokens * text.vocab_size
    blocks = max(1, int(text.num_hidden_layers))
    channels = sum(sum(spec.shape) for spec in layers.values())
    inside = tokens * (channels * (2 if lowered else 4) + _CHANNEL * text.hidden_size * blocks)
    plan = Plan(trained, *work, fixed + inside, available, False)
    if plan.needed <= available:
        return plan
    least = fixed + inside // blocks + 4 * tokens * text.hidden_size * blocks
    if least <= available:
        return Plan(trained, *work, least, available, True)
    raise ArmorError(
        f"tuning end to end takes about {least / 1e9:.1f} GB of memory, and {available / 1e9:.1f}"
        " GB are free: take a machine with more, or leave the checkpoint as armor prune made it"
    )


def room(device: str, together: int) -> int:
    """Bytes that are free for one of so many processes that are `together` on `device`."""
    return (available_memory() if device == "cpu" else free_on_device(device)) // together


def make_block_plan(
    checkpoint: Checkpoint,
    config: Any,
    work: tuple[int, int, int],
    held_out: int,
    tokens: int,
) -> Plan:
    """What a run takes that goes block by block.

    Args:
        config: of the model. work: windows to train on, tokens of each, steps.
        held_out: windows that judge. tokens: that pass together.

    Raises:
        ArmorError: there is too little memory.
    """
    text, layers = config.get_text_config(), checkpoint.layers
    blocks = max(1, int(text.num_hidden_layers))
    windows, seq_len, _ = work
    # Two streams of the text and what the dense block makes of it; one more of what judges.
    streams = 4 * (3 * windows + 4 * held_out) * seq_len * text.hidden_size
    share = min(1.0, BLOCKS / blocks)
    weights = sum(rows * cols for rows, cols in (spec.shape for spec in layers.values()))
    trained = _trained(checkpoint)
    channels = sum(sum(spec.shape) for spec in layers.values())
    stream = _CHANNEL * text.hidden_size * blocks
    inside = int(share * 4 * tokens * (channels + stream))
    block = int(share * ((_MERGED + 8) * weights + (_TRAINED + _POSITION) * trained))
    head = 4 * text.vocab_size * (text.hidden_size + 4 * tokens)
    needed = streams + max(block + inside, head) + 2 * trained
    available = available_memory()
    if needed > available:
        raise ArmorError(
            f"tuning block by block takes about {needed / 1e9:.1f} GB of memory, and"
            f" {available / 1e9:.1f} GB are free: give fewer windows (--samples)"
        )
    return Plan(trained, *work, needed, available, False)


def _trained(checkpoint: Checkpoint) -> int:
    """How many numbers are trained."""
    return sum(
        _size(stored)
        for name, stored in checkpoint.tensors.items()
        if (name.rpartition(".")[0] in checkpoint.layers and not name.endswith(".core_indices"))
        or len(stored.shape) == 1
    )


def _size(stored: StoredTensor) -> int:
    return math.prod(stored.shape)
