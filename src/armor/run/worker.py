"""Worker: what the jobs of a run work on, in whichever process; holds one decoder block at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from armor.calibrate.call import BlockCall, BlockCalls
from armor.calibrate.held_out import HeldOut
from armor.calibrate.state import State, of_batch
from armor.calibrate.stream import batches, module_inputs
from armor.config import PruneConfig
from armor.engines.job import Tensors
from armor.memory import free_on_device, trim_memory
from armor.methods import METHODS, Method
from armor.models.folder import ModelFolder
from armor.models.streamed import StreamedModel
from armor.run.block import Block
from armor.run.machine import check_machine
from armor.run.manifest import code_digest
from armor.run.open import open_model

#: The dense model's inputs to a block's linears are kept up to this size, so that it runs once a
#: block; above, it runs again for each stage. On a GPU a share of what was free there.
KEPT_INPUT_BYTES = 2**30
KEPT_INPUT_SHARE = 1 / 4


@dataclass(frozen=True)
class Spec:
    """What every worker of a run must know.

    Attributes:
        folder: the model's. calls: how its blocks are called.
        held_out: which windows no layer is fitted to; None where none is held out.
        methods: the registry of methods, which a script may have added to.
        code: the hash of the code that opened the run.
    """

    folder: ModelFolder
    config: PruneConfig
    calls: BlockCalls
    held_out: HeldOut | None
    methods: Mapping[str, Method]
    code: str

    @classmethod
    def of(
        cls, model: StreamedModel, config: PruneConfig, calls: BlockCalls, windows: Tensor
    ) -> Spec:
        """Of a run on `windows` (samples, seq) that this process opens."""
        held_out = held_out_of(config, windows)
        return cls(model.folder, config, calls, held_out, dict(METHODS), code_digest())


def held_out_of(config: PruneConfig, windows: Tensor) -> HeldOut | None:
    """Which of `windows` (samples, seq) are held out: for a compensated target alone."""
    if not METHODS[config.method].wrappers or config.target != "compensated":
        return None
    samples, seq_len = windows.shape
    return HeldOut.of(samples, seq_len, len(batches(windows)[0]))


def open_worker(spec: Spec, device: str) -> Worker:
    """The worker of another process, on the torch device `device`.

    Raises:
        ArmorError: this machine has other code, or cannot read the model.
    """
    check_machine(spec.folder, spec.code, code_digest())
    METHODS.update(spec.methods)
    return Worker(spec, open_model(spec.folder, spec.config), device)


class Worker:
    """The model on the disk, and one block of it in memory.

    Attributes:
        spec, model, device: as given.
    """

    def __init__(self, spec: Spec, model: StreamedModel, device: str) -> None:
        self.spec = spec
        self.model = model
        self.device = device
        self._kept_bytes = int(KEPT_INPUT_SHARE * free_on_device(device)) or KEPT_INPUT_BYTES
        self._block: Block | None = None
        self._dense_inputs: dict[tuple[int, int], dict[str, list[Tensor]]] = {}

    def block(self, index: int) -> Block:
        """Block `index`, read if another one was in memory."""
        if self._block is None or self._block.index != index:
            self.free_block()
            kept = self._dense_inputs.items()
            self._dense_inputs = {key: inputs for key, inputs in kept if key[0] == index}
            self._block = Block(index, self.model, self.device)
        return self._block

    def block_with(
        self, index: int, solved: Mapping[str, Tensors], patterns: Mapping[str, str]
    ) -> Block:
        """Block `index` with packed layers in the place of their linears.

        Args:
            solved: tensors of packed layers, by path in the block. patterns: of their cores, "" for
                the run's.
        """
        block = self.block(index)
        common = self.spec.config.pattern
        block.replace_all(solved, {name: own or common for name, own in patterns.items()})
        return block

    def free_block(self) -> None:
        """Give back the memory of the block."""
        self._block = None  # gone before the next one comes
        trim_memory()

    def call(self, index: int, batch: str, own: Tensors | None) -> BlockCall:
        """How block `index` is called in a batch; `own`: see `armor.run.streams.Opened`."""
        return self.spec.calls.of(index, batch, of_batch(own or {}, batch)).to(self.device)

    def input_of(
        self, block: nn.Module, call: BlockCall, state: State, linear: str
    ) -> Tensor | None:
        """What a module of `block` is given when that runs on `state`; None if it is not called.

        Args:
            linear: the module's path in the block.
        """
        return module_inputs(block, call, state.to(self.device), [linear]).get(linear)

    def keep_dense_inputs(self, index: int, part: int, inputs: dict[str, list[Tensor]]) -> None:
        """Keep what parts of the dense block are given, batch by batch, if there is room."""
        held = [*self._dense_inputs.values(), inputs]
        batches = (batch for kept in held for each in kept.values() for batch in each)
        if sum(batch.nbytes for batch in batches) <= self._kept_bytes:
            self._dense_inputs[index, part] = inputs

    def take_dense_inputs(self, index: int, part: int, name: str) -> list[Tensor] | None:
        """What was kept under one name, which is forgotten; None where nothing was."""
        return self._dense_inputs.get((index, part), {}).pop(name, None)
