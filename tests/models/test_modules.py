"""Modules and tensors by their dotted names."""

from __future__ import annotations

import torch
from torch import nn

from armor.models.modules import get_tensor, module_name, put_module, put_tensor


def test_modules_are_put_and_found_at_any_depth() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    for name in ("0.0", "1"):
        new = nn.Linear(2, 3)
        put_module(model, name, new)
        assert model.get_submodule(name) is new
        assert module_name(model, new) == name
    assert module_name(model, nn.ReLU()) is None


def test_tensors_are_replaced_whatever_their_shape_and_device() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, device="meta"))
    put_tensor(model, "0.weight", torch.ones(3))
    put_tensor(model, "0.running_mean", torch.zeros(3))
    assert isinstance(model[0].weight, nn.Parameter)
    assert torch.equal(get_tensor(model, "0.weight"), torch.ones(3))
    assert dict(model.named_buffers())["0.running_mean"].shape == (3,)
