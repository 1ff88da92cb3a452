"""ArmorLinear: the module that replaces a pruned linear layer and computes from packed data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from armor import runtime
from armor.runtime.api import Arguments
from armor.runtime.sharing import SharedInputs
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.pack import packed_shapes
from armor.sparse.pattern import TWO_OF_FOUR, Pattern


class ArmorLinear(nn.Module):
    """``y = A (S (B x)) + bias`` with a sparse core S and block-diagonal wrappers A and B.

    The parameters ask for no gradient: they are for inference. All tensors are parameters, the
    indices too, because offloading to CPU or disk moves parameters but leaves buffers behind.

    Attributes:
        pattern: of S.
        core_values: (out, N*ceil(in/M)), kept values of S; flat where S is unstructured.
        core_indices: uint8 (out, bytes of a row), their positions (`armor.sparse.pack.pack`).
        left: A, (ceil(out/b), b, b), or None without wrappers.
        right: B, (ceil(in/b), b, b), or None.
        bias: (out,), or None.
    """

    core_values: nn.Parameter
    core_indices: nn.Parameter
    left: nn.Parameter | None
    right: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        block: int | None = None,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        pattern: Pattern = TWO_OF_FOUR,
        count: int | None = None,
    ) -> None:
        """Empty tensors of the right shapes, to be loaded into; `block` None means no wrappers.

        `count` is how many entries an unstructured core keeps, by default what `pattern` says.
        """
        super().__init__()
        self.pattern = pattern
        self.in_features = in_features
        self.out_features = out_features
        self.block = block

        def empty(*shape: int, dtype: torch.dtype | None = dtype) -> nn.Parameter:
            tensor = torch.empty(shape, dtype=dtype, device=device)
            return nn.Parameter(tensor, requires_grad=False)

        values, indices = packed_shapes(out_features, in_features, pattern, count)
        self.core_values = empty(*values)
        self.core_indices = empty(*indices, dtype=torch.uint8)
        self.left = self.right = None
        if block is not None:
            self.left = empty(-(-out_features // block), block, block)
            self.right = empty(-(-in_features // block), block, block)
        self.bias = empty(out_features) if bias else None
        self.shared: tuple[SharedInputs, int] | None = None  # set by `armor.runtime.prepare`
        self._packed: Tensor | None = None  # made of these two:
        self._packed_from: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_packed(cls, layer: PackedLayer, bias: Tensor | None = None) -> ArmorLinear:
        """The module of `layer`, sharing its tensors (their dtype, their device)."""
        rows, cols = layer.shape
        module = cls(
            cols,
            rows,
            layer.block,
            bias is not None,
            device="meta",
            pattern=layer.pattern,
            count=layer.count,
        )
        tensors = layer.tensors() | ({} if bias is None else {"bias": bias})
        module.load_state_dict(tensors, assign=True)
        return module

    @classmethod
    def from_factors(cls, factors: Factors, bias: Tensor | None = None) -> ArmorLinear:
        """The module of `factors`, in their dtype. Raises `ArmorError` if the mask does not fit."""
        return cls.from_packed(PackedLayer.from_factors(factors), bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.shared is None:
            return self.alone(x)
        together, number = self.shared
        return together.run(number, x)

    def alone(self, x: Tensor) -> Tensor:
        """`forward`, whatever other layers have the same input."""
        return runtime.linear(x, *self.arguments(), self.pattern)

    def arguments(self) -> Arguments:
        """What `armor.runtime.linear` takes after x, but for the pattern."""
        packed = self._packed if self.is_packed else None
        indices: Tensor = self.core_indices
        if packed is None and self._packed is not None and not indices.numel():
            indices = self._told_indices()  # the values were replaced after packing
        return self.core_values, indices, self.left, self.right, self.bias, packed

    @property
    def is_packed(self) -> bool:
        """Whether `prepare` has packed the tensors that are here now.

        Offloading replaces parameters behind our back; what was packed of others is not used.
        """
        made_of = self._packed_from
        return (
            made_of is not None
            and made_of[0] is self.core_values
            and made_of[1] is self.core_indices
        )

    def prepare(self) -> None:
        """Pack for the backend that wants it, see `armor.runtime.prepare`.

        `core_values` lives in the packed form from then on. `core_indices` is let go (0 elements)
        if they can be told from it bit by bit: `state_dict` and `packed` do.
        """
        self._forget()
        values, indices = self.core_values, self.core_indices
        packed = runtime.pack(self.packed())
        if packed is None:
            return
        values.data = packed[: values.numel()].view(values.shape)
        self._packed, self._packed_from = packed, (values, indices)
        told = runtime.stored_indices(self.packed(), packed)
        if told is not None and torch.equal(told, indices):
            indices.data = indices.new_empty(0)

    def _forget(self) -> None:
        if self._packed is not None and not self.core_indices.numel():
            self.core_indices.data = self._told_indices()
        self._packed = self._packed_from = None

    def _told_indices(self) -> Tensor:
        assert self._packed is not None
        layer = PackedLayer(self.in_features, self.core_values, self.core_indices)
        told = runtime.stored_indices(layer, self._packed)
        assert told is not None  # it was when they were let go
        return told

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._forget()  # another device or dtype
        return super()._apply(fn, recurse)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._packed is not None and not self.core_indices.numel():
            destination[f"{prefix}core_indices"] = self._told_indices()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def packed(self) -> PackedLayer:
        """The packed weight, sharing the module's tensors; indices that were let go are told."""
        indices: Tensor = self.core_indices
        if self._packed is not None and not indices.numel():
            indices = self._told_indices()
        return PackedLayer(
            self.in_features, self.core_values, indices, self.left, self.right, self.pattern
        )

    def dense_weight(self) -> Tensor:
        """``A S B``, (out, in), multiplied in float32 or wider, in the module's dtype."""
        return self.packed().dense()

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" block={self.block}, bias={self.bias is not None}, pattern={self.pattern}"
        )


def held_bytes(model: nn.Module) -> int:
    """What the parameters of `model` take in memory, together with what was packed of them."""
    packed = [m._packed for m in model.modules() if isinstance(m, ArmorLinear) and m.is_packed]
    flat = {tensor.untyped_storage().data_ptr(): tensor for tensor in packed if tensor is not None}
    others = (p for p in model.parameters() if p.untyped_storage().data_ptr() not in flat)
    return sum(tensor.nbytes for tensor in flat.values()) + sum(p.nbytes for p in others)
