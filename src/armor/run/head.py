"""What comes after the decoder blocks: the input of the output head, the gradient of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from armor.calibrate import gradients
from armor.calibrate.call import BlockCall
from armor.calibrate.gradients import Draw, Samples
from armor.calibrate.stream import Stop, after_blocks, token_tables
from armor.errors import ArmorError
from armor.models.modules import get_tensor, put_tensor
from armor.models.streamed import StreamedModel


def head_input(model: StreamedModel, hidden: Tensor, call: BlockCall) -> Tensor:
    """The input of the output head, (batch, seq, width) float32, computed on the CPU.

    Args:
        hidden: the output of the last block. call: of that block, or another, in this batch.
    """
    hidden = hidden.cpu()
    seen: list[Tensor] = []

    def capture(_module: Any, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise Stop

    handle = model.model.get_output_embeddings().register_forward_pre_hook(capture)
    names = [name for name in _names(model) if not name.startswith(f"{model.head}.")]
    try:
        with (
            model.loaded(names),
            after_blocks(model.model, model.structure, hidden, call.form),
            torch.no_grad(),
            suppress(Stop),
        ):
            model.model(
                input_ids=torch.zeros(call.shape, dtype=torch.int64, device="cpu"), use_cache=False
            )
    finally:
        handle.remove()
    return seen[0]


def loss_gradient(
    model: StreamedModel,
    hidden: Tensor,
    tokens: Tensor,
    call: BlockCall,
    linears: Sequence[str],
    draw: Draw,
) -> tuple[Tensor, Samples]:
    """The gradient of the loss, a sum over tokens, by the output of the last block; on the CPU.

    Args:
        hidden: the output of the last block. call: of that block in this batch.
        tokens: their ids, (batch, seq).
        linears: those after the blocks to keep samples of. draw: of which tokens.

    Returns:
        As `hidden`, and the samples.

    Raises:
        ArmorError: the model has no output head.
    """
    if model.head is None:
        raise ArmorError(f"{type(model.model).__name__} has no output head to measure a loss by")
    with model.loaded(_names(model)), _tied_head(model):
        return gradients.loss_gradient(
            model.model, model.structure, hidden.cpu(), tokens, call.form, linears, draw
        )


def _names(model: StreamedModel) -> list[str]:
    """The tensors that `after_blocks` needs."""
    tables = token_tables(model.model, model.structure)
    return [n for n in model.names_outside_blocks() if n.rpartition(".")[0] not in tables]


@contextmanager
def _tied_head(model: StreamedModel) -> Iterator[None]:
    """While active, a head that shares its weight with the embeddings has it."""
    if not model.tied:
        yield
        return
    weight = f"{model.head}.weight"
    empty = get_tensor(model.model, weight)
    put_tensor(model.model, weight, model.load(f"{model.embeddings}.weight"))
    try:
        yield
    finally:
        put_tensor(model.model, weight, empty)
