"""Whether blocks that run one by one give what the model's own forward gives; checked in every run.

A model may do more than call its blocks in a row: mix what several have given, scale it between
two, hand something on in a way of its own. Then the calibration would see wrong hidden states, and
nothing would tell.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

import torch
import transformers
from torch import Tensor

from armor.calibrate.call import BlockCall, BlockCalls
from armor.calibrate.form import hidden_in
from armor.calibrate.state import State
from armor.calibrate.stream import Stop, open_stream, replaced
from armor.errors import ArmorError
from armor.memory import trim_memory
from armor.models.buffers import check_buffers
from armor.models.folder import refused_if_fails
from armor.models.streamed import StreamedModel
from armor.run.head import head_input
from armor.run.precision import bfloat16_devices

#: The same modules compute both, so they differ by rounding at most.
TOLERANCE = 1e-4


def check_own_forward(model: StreamedModel, windows: Tensor, device: str) -> None:
    """Compare hidden states on the first, middle and last of `windows`, block by block.

    One block is in memory at a time: the model's own forward is given its weights when it calls it.

    Args:
        windows: token ids, (samples, seq). device: where blocks run.

    Raises:
        ArmorError: they differ, or the model has buffers that are not those of an ordinary load.
    """
    _check_cache(model.folder.config)
    check_buffers(model.folder, model.model)
    chosen = sorted({0, len(windows) // 2, len(windows) - 1})
    if not torch.cuda.is_available():
        device = "cpu"  # the run's device is that of a cluster
    with model.first_block_loaded(), torch.no_grad():
        # Another batch first: what is held once for all of them is that one's.
        batches = [windows[chosen].roll(1, 0), windows[chosen]]
        (_, other), (hidden, given) = open_stream(model.model, model.structure, batches)
    of_both = BlockCalls(bfloat16_devices(model))
    of_both.add("other", other)
    calls = [of_both.of(i, "own", own) for i, own in enumerate(of_both.add("own", given))]
    compared = _Comparison(model, State(hidden), calls, device)
    blocks = f"{model.structure.prefix}."
    outside = [
        name
        for name in model.stored
        if not name.startswith(blocks) and not model.of_head_alone(name)
    ]
    handle = None
    if model.head is not None:
        head = model.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(compared.before_head)
    try:
        with (
            refused_if_fails(f"{type(model.model).__name__} cannot be run on text"),
            model.loaded(outside),
            replaced(model.structure, compared.block),
            torch.no_grad(),
            suppress(Stop),
        ):
            model.model(input_ids=windows[chosen], use_cache=False)
    finally:
        if handle is not None:
            handle.remove()
        trim_memory()
    if compared.head_input is not None:
        streamed = head_input(model, compared.state.hidden, calls[-1])
        compared.compare(compared.head_input, streamed, "what follows its blocks")


def _check_cache(config: Any) -> None:
    """Raise `ArmorError` where blocks share keys and values in a cache, which runs do not have."""
    shared = getattr(config.get_text_config(), "num_kv_shared_layers", 0)
    if shared and int(transformers.__version__.split(".")[0]) < 5:
        raise ArmorError(
            f"the last {shared} blocks of the model share keys and values, which version"
            f" {transformers.__version__} of transformers does only when it generates: install"
            " transformers>=5"
        )


class _Comparison:
    """The own forward and the blocks one by one, side by side.

    Attributes:
        state: what the blocks one by one have given so far.
        head_input: what the own forward gives its output head, if it came there.
    """

    def __init__(
        self, model: StreamedModel, state: State, calls: list[BlockCall], device: str
    ) -> None:
        self.state = state
        self.head_input: Tensor | None = None
        self._model = model
        self._calls = calls
        self._device = device

    def block(self, index: int, _original: Any, *args: Any, **kwargs: Any) -> Any:
        """In the place of a block's forward."""
        prefix = self._model.structure.prefix
        given = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self.compare(given, self.state.hidden, f"what {prefix}.{index} is given")
        block = self._model.block(index, self._device)
        block.__dict__.pop("forward", None)  # the stand-in, which was copied along
        call, before = self._calls[index].to(self._device), self.state.to(self._device)
        self.state = call.run(block, before).to("cpu")
        args, kwargs = _moved(args, self._device), _moved(kwargs, self._device)
        with call.precision(before.hidden.device):
            output = _moved(block(*args, **kwargs), "cpu")
        own = hidden_in(output)
        self.compare(own, self.state.hidden, f"{prefix}.{index}")
        return output

    def before_head(self, _module: Any, args: tuple[Any, ...]) -> None:
        """A hook: what the own forward gives its output head."""
        self.head_input = args[0]
        raise Stop

    def compare(self, own: Tensor, streamed: Tensor, what: str) -> None:
        """Raise `ArmorError` where the two differ by more than rounding."""
        error = _relative_error(own.float().cpu(), streamed.float().cpu())
        if error > TOLERANCE:
            raise ArmorError(
                f"{type(self._model.model).__name__} does more than call its blocks one after the"
                f" other: {what} differs from its own forward by a relative error of {error:.2g};"
                " such a model is not supported"
            )


def _moved(value: Any, device: str) -> Any:
    """`value` on `device`; mappings and lists stay the same objects, as blocks may share them."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, MutableMapping):
        for key in value:
            value[key] = _moved(value[key], device)
    elif isinstance(value, list):
        value[:] = [_moved(item, device) for item in value]
    elif isinstance(value, tuple) and not isinstance(value, torch.Size):
        items = [_moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _relative_error(own: Tensor, other: Tensor) -> float:
    """|own - other| / |own|, infinite where the shapes or what is not finite differ."""
    if own.shape != other.shape:
        return torch.inf
    if torch.equal(own.nan_to_num(), other.nan_to_num()):
        return 0.0
    error = ((own - other).norm() / own.norm()).item()
    return error if error == error else torch.inf
