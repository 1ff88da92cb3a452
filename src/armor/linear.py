"""ArmorLinear: the module that replaces a pruned linear layer and computes from packed data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from armor.checkpoint.format import LayerSpec
from armor.checkpoint.tensorfile import DTYPES
from armor.errors import ArmorError
from armor.runtime import mlp
from armor.runtime.api import linear
from armor.runtime.backend import Call
from armor.runtime.prepared import gains_from_sharing, prepare_layer
from armor.runtime.sharing import SharedInputs
from armor.sparse.factors import Factors
from armor.sparse.layer import PARTS, PackedLayer
from armor.sparse.pattern import TWO_OF_FOUR, Pattern


class ArmorLinear(nn.Module):
    """``y = A (S (B x)) + bias`` with a sparse core S and block-diagonal wrappers A and B.

    The parameters ask for no gradient, until `unfreeze` says so. All tensors are parameters, the
    indices too, because offloading to CPU or disk moves parameters, not buffers.

    Attributes:
        pattern: of S.
        core_values: (out, N*ceil(in/M)), kept values of S; flat where S is unstructured; codes
            where it is rounded.
        core_indices: uint8 (out, bytes of a row), their positions (`armor.sparse.pack.pack`).
        left: A, (ceil(out/b), b, b), or None without wrappers.
        right: B, (ceil(in/b), b, b), or None.
        core_scales, left_scales, right_scales: of rounded values (`armor.sparse.rounded.Rounded`),
            else None.
        bias: (out,), or None.
        transposed: whether the dense model keeps the weight as (in, out).
        shared: the layers it runs together with and its number among them, or None.
        placeholder: stands for `weight` until the tensors are loaded: without values, on the meta
            device.
    """

    core_values: nn.Parameter
    core_indices: nn.Parameter
    left: nn.Parameter | None
    right: nn.Parameter | None
    core_scales: nn.Parameter | None
    left_scales: nn.Parameter | None
    right_scales: nn.Parameter | None
    bias: nn.Parameter | None
    transposed: bool = False

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
        core: str | None = None,
        wrappers: str | None = None,
    ) -> None:
        """Empty tensors of the right shapes, to be loaded into; `block` None means no wrappers.

        `count` is how many entries an unstructured core keeps, by default what `pattern` says;
        `core` and `wrappers` say what these are rounded to, None for `dtype`.
        """
        super().__init__()
        self.pattern = pattern
        self.in_features = in_features
        self.out_features = out_features
        self.block = block

        def empty(*shape: int, dtype: torch.dtype | None = dtype) -> nn.Parameter:
            tensor = torch.empty(shape, dtype=dtype, device=device)
            return nn.Parameter(tensor, requires_grad=False)

        shape = out_features, in_features
        spec = LayerSpec(shape, block, pattern, count, core=core, wrappers=wrappers)
        shapes, codes = spec.tensor_shapes(), spec.code_dtypes()
        for part in PARTS:
            own = DTYPES[codes[part]] if part in codes else dtype
            setattr(self, part, empty(*shapes[part], dtype=own) if part in shapes else None)
        self.bias = empty(out_features) if bias else None
        self.shared: tuple[SharedInputs, int] | None = None
        self._gains_from_sharing = False
        self._keeps_prepared = False  # on whatever device it is
        self.placeholder: Tensor | None = None
        self._prepared: tuple[Tensor, str] | None = None  # and by which backend; made of these two:
        self._prepared_from: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_packed(cls, layer: PackedLayer, bias: Tensor | None = None) -> ArmorLinear:
        """The module of `layer`, sharing its tensors (their dtype, their device)."""
        rows, cols = layer.shape
        spec = LayerSpec.of(layer)
        module = cls(
            cols,
            rows,
            layer.block,
            bias is not None,
            device="meta",
            pattern=layer.pattern,
            count=layer.count,
            core=spec.core,
            wrappers=spec.wrappers,
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
        if self.shared is None or not self._gains_from_sharing:
            return self.alone(x)
        together, number = self.shared
        return together.run(number, x)

    def alone(self, x: Tensor) -> Tensor:
        """`forward`, whatever other layers have the same input."""
        return linear(x, self.call())

    def call(self) -> Call:
        """What `armor.runtime.linear` takes after x."""
        prepared, by = self._prepared if self._prepared and self.is_prepared else (None, "")
        return Call(self.packed(), self.bias, prepared, by)

    @property
    def is_prepared(self) -> bool:
        """Whether a backend has prepared the tensors that are here now.

        Offloading replaces parameters without a notice; what was prepared of others is not used.
        """
        made_of = self._prepared_from
        return (
            made_of is not None
            and made_of[0] is self.core_values
            and made_of[1] is self.core_indices
        )

    def prepare(self) -> None:
        """Hold the form that a backend computes from, where one needs another than the stored one.

        Where that form begins with the kept values, `core_values` is a view of it from then on. On
        another device or in another dtype (``model.to``) it is made again.
        """
        self._drop_prepared()
        self._keeps_prepared = True
        self._gains_from_sharing = gains_from_sharing(self.packed())
        values = self.core_values
        made = prepare_layer(self.packed())
        if made is None:
            return
        head = made[0].flatten()[: values.numel()]
        if head.dtype == values.dtype and torch.equal(head, values.flatten()):
            values.data = head.view(values.shape)
        self._prepared, self._prepared_from = made, (values, self.core_indices)

    def _drop_prepared(self) -> None:
        self._prepared = self._prepared_from = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._drop_prepared()  # another device or dtype
        moved = super()._apply(fn, recurse)
        if self._keeps_prepared and _is_here(self):
            self.prepare()
        return moved

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop_prepared()
        super()._load_from_state_dict(*args, **kwargs)

    def packed(self) -> PackedLayer:
        """The packed weight, sharing the module's tensors."""
        return PackedLayer(
            self.in_features,
            self.core_values,
            self.core_indices,
            self.left,
            self.right,
            self.pattern,
            self.core_scales,
            self.left_scales,
            self.right_scales,
        )

    def dense_weight(self) -> Tensor:
        """``A S B``, (out, in), multiplied in float32 or wider, in the module's dtype."""
        return self.packed().dense()

    @property
    def weight(self) -> Tensor:
        """`dense_weight`, computed each time: for code of a model that reads it. Never stored."""
        return self.dense_weight() if self.placeholder is None else self.placeholder

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" block={self.block}, bias={self.bias is not None}, pattern={self.pattern}"
            + ("" if self.core_scales is None else f", core={self.packed().core}")
        )


def prepare(model: nn.Module) -> None:
    """Prepare every `ArmorLinear` of `model` for the backends that need another form of it.

    Layers with the same input run together from then on, and gated MLPs as one, where a backend
    gains from that.
    ``from_pretrained`` does it, and moving the model or changing its dtype does it again. Layers
    that are offloaded are left alone. On the CPU nothing is prepared: its backend reads the stored
    tensors.
    """
    for module in model.modules():
        if isinstance(module, ArmorLinear):
            module.shared = None
            if _is_here(module):
                module.prepare()
    for parent in model.modules():
        layers = {n: c for n, c in parent.named_children() if isinstance(c, ArmorLinear)}
        if all(map(_is_here, layers.values())):
            mlp.recognise(parent, layers)
        siblings: dict[int, list[ArmorLinear]] = {}
        for child in layers.values():
            if _is_here(child):
                siblings.setdefault(child.in_features, []).append(child)
        for group in siblings.values():
            if len(group) > 1:
                together = SharedInputs(group)
                for number, layer in enumerate(group):
                    layer.shared = (together, number)


def unfreeze(model: nn.Module) -> None:
    """Have A, B, the kept values of S and the bias of every `ArmorLinear` of `model` trained.

    Where the values are stays as it is, whatever an optimiser does: only the kept ones are numbers.
    Load the model in float32, or train under `torch.autocast`.

    Raises:
        ArmorError: a layer of rounded values: codes are no numbers to train.
    """
    for name, layer in armor_layers(model):
        if layer.core_scales is not None:
            raise ArmorError(
                f"{name} holds codes (--core), which are not trained: train what else there is, or"
                " prune without --core"
            )
        for parameter in layer.parameters():
            parameter.requires_grad_(parameter.is_floating_point())


def armor_layers(model: nn.Module) -> Iterator[tuple[str, ArmorLinear]]:
    """Every `ArmorLinear` of `model`, by its name."""
    for name, module in model.named_modules():
        if isinstance(module, ArmorLinear):
            yield name, module


def held_bytes(model: nn.Module) -> int:
    """What the parameters of `model` take in memory, together with what was prepared of them."""
    layers = [m for m in model.modules() if isinstance(m, ArmorLinear) and m.is_prepared]
    prepared = [layer._prepared[0] for layer in layers if layer._prepared is not None]
    flat = {tensor.untyped_storage().data_ptr(): tensor for tensor in prepared}
    others = (p for p in model.parameters() if p.untyped_storage().data_ptr() not in flat)
    return sum(tensor.nbytes for tensor in flat.values()) + sum(p.nbytes for p in others)


def _is_here(module: nn.Module) -> bool:
    """Not offloaded."""
    return not any(tensor.is_meta for tensor in module.parameters())
