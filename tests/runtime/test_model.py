"""A whole model on the runtime: generation, static cache, compilation, memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from armor.linear import ArmorLinear, prepare
from armor.runtime import use

PROMPT = torch.arange(5, 15).view(2, 5)
SETTINGS = {
    "attention_mask": torch.ones_like(PROMPT),
    "max_new_tokens": 12,
    "do_sample": False,
    "pad_token_id": 0,
}


def storages(module: nn.Module) -> Iterator[torch.UntypedStorage]:
    """Every distinct storage that `module` keeps, hidden attributes included."""
    seen = set()
    for part in module.modules():
        tensors = [value for value in vars(part).values() if isinstance(value, torch.Tensor)]
        for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False), *tensors]:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage


@pytest.fixture(scope="module")
def model(make_llama, make_case) -> LlamaForCausalLM:
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 172}
    model = make_llama(**sizes, initializer_range=0.2)
    model.generation_config.eos_token_id = None
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            layer = make_case(linear.out_features, linear.in_features, 16, 1).layer
            layer.core_values.mul_(0.2)
            setattr(model.get_submodule(parent), child, ArmorLinear.from_packed(layer))
    prepare(model)
    return model


def test_static_cache_generates_the_same(model: LlamaForCausalLM) -> None:
    plain = model.generate(PROMPT, **SETTINGS)
    assert plain.shape == (2, 17)
    with use("reference"):
        assert torch.equal(model.generate(PROMPT, **SETTINGS), plain)
    static = model.generate(PROMPT, cache_implementation="static", **SETTINGS)
    assert torch.equal(static, plain)


# transformers 4.57 under torch 2.13.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_whole_model_is_one_graph(model: LlamaForCausalLM) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        logits = compiled(PROMPT, use_cache=False).logits
        torch.testing.assert_close(logits, model(PROMPT, use_cache=False).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_the_packed_form_after_use(make_case, dtype: torch.dtype) -> None:
    rows, cols, block = 256, 512, 16
    case = make_case(rows, cols, block, 70, dtype)
    module = ArmorLinear.from_packed(case.layer)
    module.prepare()
    for batch in (1, 8, 70):
        module(case.x[:batch])
    dense = rows * cols * dtype.itemsize
    overhead = (rows + cols) * block / (rows * cols)
    positions = 1 / (8 * dtype.itemsize)  # 2 bits for each kept value
    assert sum(storage.nbytes() for storage in storages(module)) <= (
        (0.5 + positions + overhead) * 1.02 * dense
    )
