"""Transposed linears: the `Conv1D` of GPT-2 keeps its weight as (in, out).

In the model it becomes a plain linear, and what is stored is read as its transpose. The checkpoint
says so of a layer, which then takes the place of a `Conv1D`; the dense export turns it back.
"""

from __future__ import annotations

from torch import Tensor, nn

from armor.checkpoint.tensorfile import StoredTensor
from armor.models.modules import put_module


class TransposedTensor(StoredTensor):
    """A matrix in a file, to be read as its transpose, which `shape` is that of."""

    @classmethod
    def of(cls, stored: StoredTensor) -> TransposedTensor:
        """The transpose of `stored`."""
        rows, cols = stored.shape
        return cls(stored.path, stored.dtype, (cols, rows), stored.offset, stored.nbytes)

    def load(self) -> Tensor:
        """The transpose, in memory. Raises `ArmorError`: see `StoredTensor.load`."""
        rows, cols = self.shape
        stored = StoredTensor(self.path, self.dtype, (cols, rows), self.offset, self.nbytes)
        return stored.load().T.contiguous()


def transposed_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a `Conv1D` of transformers; None for any other module."""
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, Conv1D):
        return None
    width, out = module.weight.shape
    return out, width


def make_plain(model: nn.Module) -> list[str]:
    """Put a linear in the place of every `Conv1D`, in place, sharing its memory; their names."""
    found = []
    for name, module in list(model.named_modules()):
        if (shape := transposed_shape(module)) is None:
            continue
        out, width = shape
        linear = nn.Linear(width, out, True, "meta", module.weight.dtype)
        linear.weight = nn.Parameter(module.weight.data.T, requires_grad=False)
        linear.bias = module.bias
        put_module(model, name, linear.train(module.training))
        found.append(name)
    return found


def make_transposed(linear: nn.Linear) -> nn.Module:
    """The `Conv1D` that computes what `linear` does, with a copy of its weight."""
    from transformers.pytorch_utils import Conv1D

    conv = Conv1D(0, 0)
    conv.nx, conv.nf = linear.in_features, linear.out_features
    conv.weight = nn.Parameter(linear.weight.data.T.contiguous(), requires_grad=False)
    conv.bias = linear.bias
    plain: nn.Module = conv.train(linear.training)
    return plain
