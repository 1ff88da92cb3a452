"""ArmorExpertsMethod: the routed experts of a layer of vLLM's, some of them pruned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.fused_moe.activation import apply_moe_activation
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.platforms import current_platform

from armor.errors import ArmorError
from armor.vllm.linear import Source, placeholder
from armor.vllm.parts import Part, Wanted, read_part, run_parts


class ArmorExpertsMethod(FusedMoEMethodBase):
    """How vLLM loads and runs such experts: one after another, each on the tokens it is chosen for.

    Args:
        names: of the matrices in the checkpoint: for each expert its gate, up and down.
    """

    def __init__(self, source: Source, moe: Any, prefix: str, names: list[list[str]]) -> None:
        """Raises `ArmorError` for experts that cannot be run so."""
        super().__init__(moe)
        self._source = source
        self._names = names
        # Which experts run depends on the tokens, and a graph would hold the choice of its capture.
        model = get_current_vllm_config().model_config
        if not (current_platform.is_cpu() or model.enforce_eager):
            raise ArmorError(f"{prefix} has pruned experts: serve the model with --enforce-eager")
        if moe.has_bias or not moe.is_act_and_mul:
            raise ArmorError(
                f"{prefix} has experts of a kind that armor does not run in vLLM (with biases, or"
                " without a gate): run `armor export`, and serve the dense model"
            )

    def create_weights(
        self,
        layer: nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Empty parameters by the names that vLLM's loading knows."""
        self._width, self._dtype = intermediate_size_per_partition, params_dtype
        layer.register_parameter("w13_weight", placeholder(params_dtype))
        layer.register_parameter("w2_weight", placeholder(params_dtype))

    def process_weights_after_loading(self, layer: Any) -> None:
        """Read the experts of this process. Raises `ArmorError` for damaged tensors."""
        self._source.check_taken()
        experts = {}
        for number, names in enumerate(self._names):
            slot = number if layer.expert_map is None else int(layer.expert_map[number])
            if slot >= 0:
                experts[str(slot)] = self._read(layer, names)
        layer.experts = nn.ModuleDict(experts)

    def _read(self, layer: Any, names: list[str]) -> nn.ModuleList:
        """Gate, up and down of an expert."""
        checkpoint, device = self._source.checkpoint(), layer.w2_weight.device
        begin = self.moe.tp_rank * self._width
        inner, outer = (begin, begin + self._width), (0, layer.hidden_size)
        gate, up, down = names
        wanted = Wanted(gate, inner, outer), Wanted(up, inner, outer), Wanted(down, outer, inner)
        return nn.ModuleList(read_part(checkpoint, each, self._dtype, device) for each in wanted)

    def get_fused_moe_quant_config(self, layer: nn.Module) -> None:
        """None: nothing of vLLM's kernels runs."""

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        """The weighted sum of the chosen experts' outputs.

        Args:
            x: (tokens, in). topk_weights, topk_ids: (tokens, chosen).
        """
        if torch.compiler.is_compiling():
            return experts_operator(x, topk_weights, topk_ids, layer.layer_name)
        return run_experts(layer, x, topk_weights, topk_ids)


# Which experts run depends on the tokens: nothing that a compiler could trace.
@torch.library.custom_op(
    "armor::vllm_experts",
    mutates_args=(),
    schema="(Tensor x, Tensor topk_weights, Tensor topk_ids, str name) -> Tensor",
)
def experts_operator(x: Tensor, topk_weights: Tensor, topk_ids: Tensor, name: str) -> Tensor:
    """`run_experts` of the layer that vLLM calls `name`."""
    layer = get_forward_context().no_compile_layers[name].routed_experts
    return run_experts(layer, x, topk_weights, topk_ids)


@experts_operator.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


def run_experts(layer: Any, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
    """See `ArmorExpertsMethod.apply`."""
    y = torch.zeros_like(x)
    local = topk_ids if layer.expert_map is None else layer.expert_map[topk_ids]
    for slot, (gate, up, down) in layer.experts.items():
        tokens, order = (local == int(slot)).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        weights = topk_weights[tokens, order].unsqueeze(-1).to(x.dtype)
        given = x[tokens]
        if layer.apply_router_weight_on_input:
            given, weights = given * weights, torch.ones_like(weights)
        y.index_add_(0, tokens, _expert(layer, gate, up, down, given) * weights)
    return y


def _expert(layer: Any, gate: Part, up: Part, down: Part, x: Tensor) -> Tensor:
    """Down of the activation of gate and up."""
    joined = run_parts([gate, up], x)
    inner = joined.new_empty(len(joined), joined.shape[-1] // 2)
    apply_moe_activation(layer.activation, inner, joined)
    return down(inner)
