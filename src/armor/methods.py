"""The pruning methods: one line each, read by the settings, the run, comparisons and the help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from armor.sparse.factors import Factors

Stream = Literal["dense", "pruned"]
#: Takes a `Problem`, a `Pattern`, and for a low-rank method its ``rank``.
Prune = Callable[..., "Factors"]


@dataclass(frozen=True)
class Method:
    """One way to prune a layer.

    Attributes:
        prune: gives the sparse factors of a `Problem` under a `Pattern`; or the place of that
            function, "module:name", so that naming a method does not import torch. None: the
            solver of `armor.factorize`.
        statistics: whose activations the moment is measured on: the dense model's, or those of
            the model as pruned so far. Not for a method with wrappers, whose target decides.
        moment: "full" E[x x^T], or only its diagonal "diag". Not for a method with wrappers, whose
            objective decides.
        wrappers: whether the core stands between block-diagonal wrappers, so that layers have a
            block size.
        low_rank: whether a matrix of low rank is added to the core, with as many parameters as
            wrappers would have; `prune` gets its ``rank``.
        bits: of each weight, besides scales, of a method that rounds instead of pruning.
    """

    prune: Prune | str | None = None
    statistics: Stream = "pruned"
    moment: Literal["full", "diag"] = "diag"
    wrappers: bool = False
    low_rank: bool = False
    bits: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it gives weights that armor does not pack: they are stored dense, and the bytes
        of a compact form are counted. Such methods are there to be compared with."""
        return self.low_rank or self.bits is not None

    def load(self) -> Prune:
        """The function of `prune`."""
        if isinstance(self.prune, str):
            module, _, name = self.prune.partition(":")
            found: Prune = getattr(import_module(module), name)
            return found
        assert self.prune is not None
        return self.prune


def packed_methods() -> list[str]:
    """Those that a checkpoint is made with: all but those that are only compared with."""
    return [name for name, method in METHODS.items() if not method.is_plain]


#: By name. A new method is its file in ``baselines/`` and a line here; from a script of your own
#: ``METHODS["mine"] = Method(prune=function)`` does the same.
METHODS: dict[str, Method] = {
    "armor": Method(wrappers=True),
    "magnitude": Method("armor.baselines.magnitude:magnitude", statistics="dense"),
    "wanda": Method("armor.baselines.wanda:wanda"),
    "nowag": Method("armor.baselines.nowag:nowag", statistics="dense"),
    "sparsegpt": Method("armor.baselines.sparsegpt:sparsegpt", moment="full"),
    "sparsegpt-lowrank": Method(
        "armor.baselines.low_rank:sparsegpt_low_rank", moment="full", low_rank=True
    ),
    "int8": Method("armor.baselines.quantised:int8", statistics="dense", bits=8),
    "int4": Method("armor.baselines.quantised:int4", statistics="dense", bits=4),
    "int3": Method("armor.baselines.quantised:int3", statistics="dense", bits=3),
}
