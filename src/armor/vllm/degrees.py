"""Which degrees of tensor parallelism a checkpoint admits in vLLM, and at what cost.

This needs no vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from armor.checkpoint.format import LayerSpec
from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.stored_size import StoredSize
from armor.errors import ArmorError
from armor.sparse.shard import held_columns, held_rows

#: The degrees that are always spoken of; others up to the last where they are admitted.
USUAL = (2, 4, 8, 16)
#: What models call a linear whose inputs are split, not its outputs: that its outputs are summed.
_SPLIT_INPUTS = {
    *("o_proj", "out_proj", "down_proj", "dense", "dense_4h_to_h", "c_proj", "fc2", "fc_out"),
    *("w2", "wo", "proj_down", "attn_out", "ff_out"),
}
_QUERY = {"q_proj", "query", "wq", "q"}
_KEY_VALUE = {"k_proj", "v_proj", "key", "value", "wk", "wv", "k", "v"}


@dataclass(frozen=True)
class Degree:
    """A number of processes that share a model.

    Attributes:
        count: of the processes.
        reason: why it is not admitted, or "".
        bytes: of the pruned layers in the process that holds most of them.
        surplus: what of these is there only because wrapper blocks are not cut, and because every
            process has the whole A of a layer whose inputs are split; and keys and values that
            several processes have.
        cut: how many pruned layers have a wrapper block that two processes hold.
    """

    count: int
    reason: str = ""
    bytes: int = 0
    surplus: int = 0
    cut: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Its entry in what ``armor inspect --tensor-parallel --json`` writes."""
        return {
            "admitted": not self.reason,
            "reason": self.reason or None,
            "bytes": self.bytes,
            "surplus": self.surplus,
            "layers_cut_in_a_block": self.cut,
        }


def refuse_rounded(checkpoint: Checkpoint) -> None:
    """Raise `ArmorError` if a layer has a rounded core."""
    for spec in checkpoint.layers.values():
        if spec.core is not None:
            raise ArmorError(
                f"{checkpoint.folder}: the plug-in for vLLM reads no {spec.core} cores yet:"
                " serve the dense export (armor export), or prune without --core"
            )


def degrees(checkpoint: Checkpoint) -> list[Degree]:
    """The usual degrees, and others up to 16 that are admitted.

    A layer's place is told by its name: the names of the linears whose outputs are summed are few.
    """
    refuse_rounded(checkpoint)
    found = []
    for count in range(2, USUAL[-1] + 1):
        reason = _refusal(checkpoint, count)
        if not reason:
            found.append(_cost(checkpoint, count))
        elif count in USUAL:
            found.append(Degree(count, reason))
    return found


def _refusal(checkpoint: Checkpoint, count: int) -> str:
    """Why vLLM does not split the model among so many processes, or ""."""
    heads, keys = _heads(checkpoint.config)
    if heads % count:
        return f"{heads} attention heads"
    if keys % count and count % keys:
        return f"{keys} heads of keys and values"
    for name, spec in checkpoint.layers.items():
        kind = _kind(name)
        size = spec.shape[1] if kind == "inputs" else spec.shape[0]
        if kind in ("inputs", "outputs") and name != "lm_head" and size % count:
            return f"{size} {kind} of {name}"
    return ""


def _cost(checkpoint: Checkpoint, count: int) -> Degree:
    keys = _heads(checkpoint.config)[1]
    totals, even, cut = [0] * count, 0.0, 0
    for name, spec in checkpoint.layers.items():
        size = StoredSize.of(name, spec, checkpoint.tensors)
        width = size.values // max(1, prod(spec.tensor_shapes()["core_values"]))
        even += size.packed / count
        shards = min(count, keys) if _kind(name) == "keys" else count
        ranges = [_held(name, spec, rank * shards // count, shards) for rank in range(count)]
        cut += any(inside for _, inside in ranges)
        for rank, (part, _) in enumerate(ranges):
            totals[rank] += _bytes(part, width)
    return Degree(count, "", max(totals), max(0, max(totals) - round(even)), cut)


def _held(name: str, spec: LayerSpec, number: int, shards: int) -> tuple[dict[str, int], bool]:
    """The entries of each tensor of a shard, and whether a block is cut inside."""
    rows, cols = spec.shape
    axis = cols if _kind(name) == "inputs" else rows
    begin, end = number * axis // shards, (number + 1) * axis // shards
    if _kind(name) == "inputs":
        held = held_columns(begin, end, cols, spec.block, spec.pattern)
        shape = (rows, held[1] - held[0])
    else:
        held = held_rows(begin, end, rows, spec.block)
        shape = (held[1] - held[0], cols)
    share = prod(shape) / prod(spec.shape)
    whole = None if spec.count is None else max(1, round(spec.count * share))
    part = replace(spec, shape=shape, count=whole)
    return {tensor: prod(size) for tensor, size in part.tensor_shapes().items()}, held != (
        begin,
        end,
    )


def _bytes(entries: Mapping[str, int], width: int) -> int:
    return sum(n * (1 if tensor == "core_indices" else width) for tensor, n in entries.items())


def _kind(name: str) -> str:
    """What is split of a layer: "inputs" or "outputs", or these by heads: "queries" or "keys"."""
    leaf = name.rpartition(".")[2]
    if leaf.isdecimal():  # a part of a fused linear; of qkv each part has heads
        whole = name.split(".")[-2]
        if "gate" in whole or "up" in whole:
            return "outputs"
        return "keys" if leaf != "0" and "qkv" in whole else "queries"
    if leaf in _SPLIT_INPUTS:
        return "inputs"
    if leaf in _QUERY:
        return "queries"
    return "keys" if leaf in _KEY_VALUE else "outputs"


def _heads(config: Mapping[str, Any]) -> tuple[int, int]:
    """Attention heads, and those of keys and values."""
    text = config.get("text_config")
    data = text if isinstance(text, Mapping) else config
    heads = data.get("num_attention_heads") or data.get("n_head") or 1
    return heads, data.get("num_key_value_heads") or heads
