"""What one iteration of the exact solver computes and moves, counted while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode


class _Bytes(TorchDispatchMode):
    """Sums the sizes of what every operation reads and writes; views and `empty` are free."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not (function.is_view or "empty" in function._schema.name):
            read = [value for key, value in kwargs.items() if key != "out"]
            for item in tree_flatten((args, read, result))[0]:
                if isinstance(item, Tensor):
                    self.total += item.numel() * item.element_size()
        return result


def count(run: Callable[[], object]) -> tuple[int, int]:
    """Floating-point operations of the matrix products of `run()`, and bytes of all operations.

    Kernels of our own are not seen; `sweep_cost` knows theirs.
    """
    with FlopCounterMode(display=False) as products, _Bytes() as traffic:
        run()
    return products.get_total_flops(), traffic.total


def sweep_cost(rows: int, cols: int, block: int) -> tuple[int, int]:
    """Operations and bytes of one core sweep over a float32 (rows, cols) matrix.

    A block costs b^3 to catch up with the rows above, 2 b^3 to move its row along, and some 75 for
    the six pairs of each of its b^2/4 groups. The residual is read; core, pairs and scratch are
    read and written.
    """
    values = rows * cols
    return values * (3 * block + 19), values * 4 * 5 + values // 2
