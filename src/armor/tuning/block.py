"""block: a few decoder blocks at a time, on what the dense ones put out.

No more of them are in memory. Their inputs are those that the tuned blocks before them give; each
token counts by its error relative to its own size, since a few are larger by orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from armor.calibrate.call import BlockCall
from armor.calibrate.state import State, of_batch, states
from armor.calibrate.stream import after_blocks
from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.tuning import Curve
from armor.errors import ArmorError
from armor.linear import ArmorLinear
from armor.models.modules import put_module, put_tensor
from armor.models.streamed import StreamedModel
from armor.run.layer_names import LayerNames
from armor.run.own_forward import check_own_forward
from armor.run.streams import open_streams
from armor.sparse.layer import PackedLayer
from armor.tuning.config import BLOCKS, TuneConfig
from armor.tuning.divergence import divergence
from armor.tuning.keeper import Keeper, Text
from armor.tuning.steps import Steps, order
from armor.tuning.student import Student

#: How often the held-out windows judge some blocks.
_JUDGEMENTS = 3


class _Stream:
    """The batches of some windows on their way through the blocks.

    Attributes:
        dense, tuned: states at the input of the next block, of the dense model and the tuned one.
        pruned: of the one before tuning; None where nobody asks.
    """

    def __init__(self, model: StreamedModel, windows: Tensor, watch: bool) -> None:
        self._opened = open_streams(model, windows)
        self.dense = {batch: state for part in self._opened.hidden for batch, state in states(part)}
        self.tuned = dict(self.dense)
        self.pruned = dict(self.dense) if watch else None

    def call(self, index: int, batch: str) -> BlockCall:
        """How block `index` is called with a batch."""
        parts = self._opened.own[index]
        own = {name: value for part in parts for name, value in of_batch(part, batch).items()}
        return self._opened.calls.of(index, batch, own)


def parts_of(count: int) -> list[range]:
    """The numbers of so many blocks, those that are trained together."""
    return [range(first, min(first + BLOCKS, count)) for first in range(0, count, BLOCKS)]


class BlockTuning:
    """A run through the blocks.

    Args:
        model: the dense one. names: of the pruned layers.
        stepped: called with the steps taken, their total, the latest error on held-out windows and
            on trained ones, relative to what the dense block puts out.
    """

    def __init__(
        self,
        model: StreamedModel,
        checkpoint: Checkpoint,
        names: LayerNames,
        text: Text,
        config: TuneConfig,
        device: str,
        keeper: Keeper,
        stepped: Callable[[int, int, float, float], None],
    ) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self._names = names
        self._config = config
        self._device = device
        self._keeper = keeper
        self._stepped = stepped
        check_own_forward(model, text.train, device)
        self._train = _Stream(model, text.train, watch=False)
        self._held_out = _Stream(model, text.held_out, watch=True)
        self._changed: dict[str, Tensor] = {}

    def run(self) -> tuple[dict[str, Tensor], Curve]:
        """What is trained as the checkpoint is to have it, by name, and the divergence of the
        predictions from the dense model's before and after.

        Raises:
            ArmorError: the loss is not finite.
        """
        found = self._keeper.load()
        steps, _, self._changed = (0, Curve(), {}) if found is None else found
        together = parts_of(len(self._model.structure.blocks))
        for number, part in enumerate(together):
            for index in range(part.stop, part.stop + BLOCKS):
                self._model.prefetch(index)
            dense = self._dense(part)
            targets = [self._through(part, dense, one, one.dense) for one in self._streams()]
            done = (number + 1) * self._config.step_count
            if steps < done and any(map(self._names.in_block, part)):
                self._tune(number, part, *targets)
                self._keeper.save(done, Curve(), self._changed)
            assert self._held_out.pruned is not None
            before = self._student(part, {})
            with before.rounded():
                self._held_out.pruned = self._through(
                    part, before.model, self._held_out, self._held_out.pruned
                )
            after = self._student(part, self._changed)
            with after.rounded():
                for stream in self._streams():
                    stream.tuned = self._through(part, after.model, stream, stream.tuned)
            self._train.dense, self._held_out.dense = targets
        curve = Curve({0: self._divergence(self._held_out.pruned)})
        steps = len(together) * self._config.step_count
        curve.held_out[steps] = self._divergence(self._held_out.tuned)
        return self._changed if curve.best else {}, curve

    def _streams(self) -> tuple[_Stream, _Stream]:
        return self._train, self._held_out

    def _dense(self, part: range) -> nn.ModuleList:
        """Those blocks of the dense model."""
        return nn.ModuleList(self._model.block(index, self._device) for index in part)

    def _tune(
        self,
        before: int,
        part: range,
        targets: Mapping[str, State],
        held_out: Mapping[str, State],
    ) -> None:
        """Train blocks together; what lowers their error on held-out windows goes into `_changed`.

        Args:
            before: parts that were trained before. part: numbers of the blocks.
            targets, held_out: what the dense blocks put out, by batch.
        """
        student = self._student(part, self._changed)
        total = self._config.step_count
        steps = Steps(student.trained, self._config.step_size, total)
        least = self._judge(part, student, held_out)
        batches = list(self._train.tuned)
        seed = self._config.seed + part.start
        count = len(parts_of(len(self._model.structure.blocks)))
        for number, (chosen,) in enumerate(order(len(batches), 1, total, seed)):
            student.merge()
            loss = self._loss(part, student, self._train, batches[chosen], targets)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise ArmorError(
                    f"tuning: the error of blocks {part.start} to {part.stop - 1} is {value} at"
                    f" step {number + 1}: give a smaller --step-size"
                )
            torch.autograd.backward(loss)
            student.pull_back()
            steps.take(number)
            done = number + 1
            if done % max(1, total // _JUDGEMENTS) == 0 or done == total:
                judged = self._judge(part, student, held_out)
                if judged < least:
                    least = judged
                    self._changed |= student.stored()
            self._stepped(before * total + done, count * total, least, value)

    def _student(self, part: range, changed: Mapping[str, Tensor]) -> Student:
        """Blocks as the checkpoint has them, but for what is in `changed`."""
        blocks, names = self._dense(part), dict[str, str]()
        for number, index in enumerate(part):
            block = blocks[number]
            own = self._pruned(index, block, changed)
            names |= {f"{number}.{path}": name for path, name in own.items()}
        return Student(blocks, names, self._checkpoint)

    def _pruned(
        self, index: int, block: nn.Module, changed: Mapping[str, Tensor]
    ) -> dict[str, str]:
        """Make `block`, the dense one of that number, the pruned one.

        Returns:
            What the checkpoint calls its parameters, by their names there.
        """
        tensors, prefix = self._checkpoint.tensors, f"{self._model.structure.prefix}.{index}."

        def load(name: str) -> Tensor:
            found = changed[name] if name in changed else tensors[name].load()
            return found.to(self._device, torch.float32 if found.is_floating_point() else None)

        names: dict[str, str] = {}
        for name in self._names.in_block(index):
            linear = self._model.layout.path(name).removeprefix(prefix)
            dense = block.get_submodule(linear)
            assert isinstance(dense, nn.Linear)
            bias = None if dense.bias is None else dense.bias.data
            spec = self._checkpoint.layers[name]
            parts = {part: load(f"{name}.{part}") for part in spec.tensor_shapes()}
            layer = PackedLayer.of(spec.shape[1], parts, spec.pattern)
            put_module(block, linear, ArmorLinear.from_packed(layer, bias))
            names |= {f"{linear}.{part}": f"{name}.{part}" for part in (*parts, "bias")}
        for path, parameter in list(block.named_parameters()):
            name = names.setdefault(path, prefix + path)
            if name not in tensors:
                del names[path]  # the checkpoint has it in another form: it stays as it is
            elif parameter.dim() == 1:
                put_tensor(block, path, load(name))
        return names

    def _through(
        self, part: range, blocks: Any, stream: _Stream, before: Mapping[str, State]
    ) -> dict[str, State]:
        """The states after `blocks`, by batch, on the CPU."""
        after = {}
        for batch, given in before.items():
            state = given.to(self._device)
            for index, block in zip(part, blocks, strict=True):
                call = stream.call(index, batch).to(self._device)
                state = call.run(block, state)
            after[batch] = state.to("cpu")
        return after

    def _judge(self, part: range, student: Student, targets: Mapping[str, State]) -> float:
        """The mean error on held-out windows, of what would be stored."""
        stream = self._held_out
        with torch.no_grad(), student.rounded():
            losses = [float(self._loss(part, student, stream, batch, targets)) for batch in targets]
        return sum(losses) / len(losses)

    def _loss(
        self,
        part: range,
        student: Student,
        stream: _Stream,
        batch: str,
        targets: Mapping[str, State],
    ) -> Tensor:
        """The mean over tokens of their squared error over their squared size."""
        device = torch.device(self._device)
        blocks: Any = student.model
        state = stream.tuned[batch].to(device)
        for index, block in zip(part, blocks, strict=True):
            call = stream.call(index, batch).to(self._device)
            with call.precision(device):
                state = call.traced(block, state)
        wanted = targets[batch].hidden.to(device)
        error = (state.hidden.float() - wanted).square().sum(-1)
        size = wanted.square().sum(-1)
        return (error / size.clamp(min=torch.finfo(torch.float32).tiny)).mean()

    def _divergence(self, before: Mapping[str, State] | None) -> float:
        """KL from the dense model's predictions on the held-out windows, in nats a token."""
        assert before is not None
        total, tokens = 0.0, 0
        for batch, state in before.items():
            call = self._held_out.call(len(self._model.structure.blocks) - 1, batch)
            dense = self._logits(self._held_out.dense[batch].hidden, call)
            own = self._logits(state.hidden, call)
            total += float(divergence(own.flatten(0, -2), dense.flatten(0, -2)))
            tokens += own[..., 0].numel()
        return total / tokens

    def _logits(self, hidden: Tensor, call: BlockCall) -> Tensor:
        """What the model makes of the output of its last block, on the CPU."""
        model = self._model
        ids = torch.zeros(call.shape, dtype=torch.int64, device="cpu")
        blocks = f"{model.structure.prefix}."
        outside = [name for name in model.stored if not name.startswith(blocks)]
        with (
            torch.no_grad(),
            model.loaded(outside),
            after_blocks(model.model, model.structure, hidden, call.form),
        ):
            logits: Tensor = model.model(input_ids=ids, use_cache=False).logits
        return logits
