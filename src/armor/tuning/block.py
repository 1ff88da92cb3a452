"""block: decoder block by decoder block, each on what the dense one puts out.

One block is in memory at a time. Its inputs are those that the tuned blocks before it give; each
token counts by its error relative to its own size, since a few are larger by orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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
from armor.tuning.config import TuneConfig
from armor.tuning.divergence import divergence
from armor.tuning.keeper import Keeper, Text
from armor.tuning.steps import Steps, order
from armor.tuning.student import Student

#: How often the held-out windows judge a block.
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
        done = steps // self._config.step_count
        count = len(self._model.structure.blocks)
        for index in range(count):
            self._model.prefetch(index + 1)
            dense = self._model.block(index, self._device)
            targets = [self._through(index, dense, one, one.dense) for one in self._streams()]
            if index >= done and self._names.in_block(index):
                self._tune(index, *targets)
                steps = (index + 1) * self._config.step_count
                self._keeper.save(steps, Curve(), self._changed)
            assert self._held_out.pruned is not None
            before = self._student(index, {})
            with before.rounded():
                self._held_out.pruned = self._through(
                    index, before.model, self._held_out, self._held_out.pruned
                )
            after = self._student(index, self._changed)
            with after.rounded():
                for stream in self._streams():
                    stream.tuned = self._through(index, after.model, stream, stream.tuned)
            self._train.dense, self._held_out.dense = targets
        curve = Curve({0: self._divergence(self._held_out.pruned)})
        steps = count * self._config.step_count
        curve.held_out[steps] = self._divergence(self._held_out.tuned)
        return self._changed if curve.best else {}, curve

    def _streams(self) -> tuple[_Stream, _Stream]:
        return self._train, self._held_out

    def _tune(
        self, index: int, targets: Mapping[str, State], held_out: Mapping[str, State]
    ) -> None:
        """Train block `index`; what lowers its error on held-out windows goes into `_changed`.

        Args:
            targets, held_out: what the dense block puts out, by batch.
        """
        student = self._student(index, self._changed)
        total = self._config.step_count
        steps = Steps(student.trained, self._config.step_size, total)
        least = self._judge(index, student, held_out)
        batches = list(self._train.tuned)
        seed = self._config.seed + index
        for number, (chosen,) in enumerate(order(len(batches), 1, total, seed)):
            student.merge()
            loss = self._loss(index, student, self._train, batches[chosen], targets)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise ArmorError(
                    f"tuning: the error of block {index} is {value} at step {number + 1}: give a"
                    " smaller --step-size"
                )
            torch.autograd.backward(loss)
            student.pull_back()
            steps.take(number)
            done = number + 1
            if done % max(1, total // _JUDGEMENTS) == 0 or done == total:
                judged = self._judge(index, student, held_out)
                if judged < least:
                    least = judged
                    self._changed |= student.stored()
            count = len(self._model.structure.blocks)
            self._stepped(index * total + done, count * total, least, value)

    def _student(self, index: int, changed: Mapping[str, Tensor]) -> Student:
        """Block `index` as the checkpoint has it, but for what is in `changed`."""
        tensors, prefix = self._checkpoint.tensors, f"{self._model.structure.prefix}.{index}."
        block = self._model.block(index, self._device)

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
        return Student(block, names, self._checkpoint)

    def _through(
        self, index: int, block: nn.Module, stream: _Stream, before: Mapping[str, State]
    ) -> dict[str, State]:
        """The states after `block`, by batch, on the CPU."""
        after = {}
        for batch, state in before.items():
            call = stream.call(index, batch).to(self._device)
            after[batch] = call.run(block, state.to(self._device)).to("cpu")
        return after

    def _judge(self, index: int, student: Student, targets: Mapping[str, State]) -> float:
        """The mean error on held-out windows, of what would be stored."""
        stream = self._held_out
        with torch.no_grad(), student.rounded():
            losses = [
                float(self._loss(index, student, stream, batch, targets)) for batch in targets
            ]
        return sum(losses) / len(losses)

    def _loss(
        self,
        index: int,
        student: Student,
        stream: _Stream,
        batch: str,
        targets: Mapping[str, State],
    ) -> Tensor:
        """The mean over tokens of their squared error over their squared size."""
        call = stream.call(index, batch).to(self._device)
        device = torch.device(self._device)
        with call.precision(device):
            after = call.traced(student.model, stream.tuned[batch].to(device))
        wanted = targets[batch].hidden.to(device)
        error = (after.hidden.float() - wanted).square().sum(-1)
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
