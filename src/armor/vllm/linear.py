"""ArmorLinearMethod: a linear or an output head of vLLM's, some of whose parts are pruned."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase, QKVParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.utils import set_weight_attrs

from armor.checkpoint.reader import Checkpoint
from armor.errors import ArmorError
from armor.vllm.parts import Wanted, read_part, run_parts


class Source(Protocol):
    """Where the methods read from; see `armor.vllm.config.ArmorQuantization`."""

    def checkpoint(self) -> Checkpoint:
        """The opened checkpoint."""
        ...

    def check_taken(self) -> None:
        """Raises `ArmorError` unless every pruned layer is one of vLLM's."""
        ...


class ArmorLinearMethod(LinearMethodBase):
    """How vLLM loads and runs such a layer.

    Args:
        names: of the matrices in the checkpoint: for each output that vLLM has fused, in parts.
    """

    def __init__(self, source: Source, prefix: str, names: list[list[str]]) -> None:
        self._source = source
        self._prefix = prefix
        self._names = names

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Empty parameters by the names that vLLM's loading knows; what it gives them is dropped.

        Args:
            layer: gets its parts in `process_weights_after_loading`.
            output_partition_sizes: of each fused output, in this process.
        """
        self._sizes, self._width = output_partition_sizes, input_size_per_partition
        self._dtype = params_dtype
        layer.register_parameter("weight", placeholder(params_dtype))
        for name in (name for each in self._names if len(each) > 1 for name in each):
            holder = nn.Module()
            holder.register_parameter("weight", placeholder(params_dtype))
            layer.add_module(name.rpartition(".")[2], holder)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Read what this process holds of the layer. Raises `ArmorError` for damaged tensors."""
        self._source.check_taken()
        for name in (name for each in self._names if len(each) > 1 for name in each):
            layer._modules.pop(name.rpartition(".")[2], None)
        checkpoint, weight = self._source.checkpoint(), layer.get_parameter("weight")
        parts = [
            read_part(checkpoint, wanted, self._dtype, weight.device)
            for wanted in self._wanted(layer, checkpoint)
        ]
        layer.parts = nn.ModuleList(parts)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., in) -> (..., out), both of this process."""
        y = run_parts(list(layer.parts), x)
        if (missing := sum(self._sizes) - y.shape[-1]) > 0:  # an output head, whose rows are padded
            y = nn.functional.pad(y, (0, missing))
        return y if bias is None else y + bias

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """Raises `ArmorError`: a pruned head is not the embeddings."""
        raise ArmorError(
            f"{self._prefix} is pruned, but config.json ties it to the embeddings: set"
            " tie_word_embeddings to false there"
        )

    def _wanted(self, layer: Any, checkpoint: Checkpoint) -> list[Wanted]:
        """What this process computes, in the order of its outputs."""
        rows = [[(name, _shape(checkpoint, name)) for name in each] for each in self._names]
        cols = {shape[1] for each in rows for _, shape in each}
        if cols != {layer.input_size}:
            raise ArmorError(f"{self._prefix} has {layer.input_size} inputs in vLLM, {cols} stored")
        width = self._width
        left = 0 if width == layer.input_size else layer.tp_rank * width
        found = []
        for (begin, end), each in self._ranges(layer, rows):
            at = 0
            for name, (height, _) in each:
                first, last = max(begin, at), min(end, at + height)
                if first < last:
                    found.append(Wanted(name, (first - at, last - at), (left, left + width)))
                at += height
        return found

    def _ranges(self, layer: Any, rows: list[Any]) -> list[tuple[tuple[int, int], Any]]:
        """The outputs of this process, as ranges of the rows of matrices put one on another."""
        if isinstance(layer, ParallelLMHead):
            held = layer.shard_indices
            return [((held.org_vocab_start_index, held.org_vocab_end_index), rows[0])]
        local = self._sizes
        if len(rows) == len(local):
            totals = [sum(shape[0] for _, shape in each) for each in rows]
            return [
                (self._range(layer, total, size), each)
                for total, size, each in zip(totals, local, rows, strict=True)
            ]
        # Fused on the disk, too: outputs lie one after another in one matrix, or in its parts.
        if len(rows) > 1:
            raise ArmorError(f"{self._prefix}: vLLM has {len(local)} outputs, {len(rows)} stored")
        totals = _sizes(layer)
        starts = accumulate(totals, initial=0)
        found = []
        for start, total, size in zip(starts, totals, local, strict=False):
            begin, end = self._range(layer, total, size)
            found.append(((start + begin, start + end), rows[0]))
        return found

    def _range(self, layer: Any, total: int, size: int) -> tuple[int, int]:
        """The `size` outputs of this process, of `total`; several may have the same."""
        shards, left = divmod(total, size)
        if left or layer.tp_size % shards:
            raise ArmorError(
                f"{self._prefix}: {total} outputs cannot be split among {layer.tp_size} processes,"
                f" {size} each: use another --tensor-parallel-size"
            )
        begin = layer.tp_rank * shards // layer.tp_size * size
        return begin, begin + size


def placeholder(dtype: torch.dtype) -> nn.Parameter:
    """A parameter without entries that takes whatever vLLM's loading gives it, and drops it."""
    empty = torch.empty(0, dtype=dtype, device=torch.get_default_device())  # vLLM has set it
    parameter = nn.Parameter(empty, requires_grad=False)
    set_weight_attrs(parameter, {"weight_loader": _drop})
    return parameter


def _drop(*args: Any, **kwargs: Any) -> bool:
    """A loader of vLLM's; True: loaded."""
    return True


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    """(out, in) of a stored matrix, pruned or dense."""
    if name in checkpoint.layers:
        return checkpoint.layers[name].shape
    stored = checkpoint.tensors.get(f"{name}.weight")
    if stored is None:
        raise ArmorError(f"{checkpoint.folder} has no {name}, which vLLM asks for")
    return stored.shape


def _sizes(layer: Any) -> list[int]:
    """Of each fused output, over all processes."""
    if isinstance(layer, QKVParallelLinear):
        keys = layer.total_num_kv_heads
        return [
            layer.total_num_heads * layer.head_size,
            keys * layer.head_size,
            keys * layer.v_head_size,
        ]
    return list(layer.output_sizes)
