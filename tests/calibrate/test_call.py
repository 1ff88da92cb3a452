"""The arguments of blocks: what is common to batches, what differs, what blocks hand on."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from armor.calibrate.call import BlockCall, BlockCalls
from armor.calibrate.state import State, of_batch, states
from armor.errors import ArmorError


class Block(nn.Module):
    """Adds its arguments to the hidden states, and may hand keys on, or read them."""

    def __init__(self, role: str = "") -> None:
        super().__init__()
        self.role = role

    def forward(self, hidden: Tensor, more: Tensor, shared: Any = None, table: Any = ()) -> Tensor:
        if self.role == "store":
            shared["keys"] = 2 * hidden, 3 * hidden
        if self.role == "read":
            first, second = shared["keys"]
            hidden = hidden + first + second
        return hidden + more + sum(table)


def _call(more: Tensor, shared: Any = None, table: Any = ()) -> BlockCall:
    call = BlockCall((more,), {"shared": shared, "table": table}, lambda _: 0)
    call.shape = (2, 3)
    return call


def test_only_what_differs_is_kept_for_each_batch() -> None:
    hidden, table = torch.randn(2, 3, 4), (torch.randn(4),)
    every = torch.randn(5, 2, 3, 7, 4)  # the block's input is a view of that of all blocks
    calls = BlockCalls()
    own = []
    for number, inputs in enumerate(every):
        (different,) = calls.add(str(number), [_call(inputs[:, :, 2], None, (table[0].clone(),))])
        own.append(different)
    assert [list(each) for each in own] == [[], *[["0"]] * 4]
    assert all(tensor.is_contiguous() for each in own for tensor in each.values())
    held = calls.any(0, "0").leaves()
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in held.values() if t is not None)
    for number, inputs in enumerate(every):
        call = calls.of(0, str(number), own[number])
        expected = hidden + inputs[:, :, 2] + table[0]
        assert torch.equal(call.run(Block(), State(hidden)).hidden, expected)


def test_other_values_that_differ_are_refused() -> None:
    calls = BlockCalls()
    calls.add("0", [_call(torch.zeros(4), table=(1, 2))])
    calls.add("1", [_call(torch.zeros(4), table=(1, 2))])
    for table in ((1, 3), (1, 2, 3), (1, None)):
        with pytest.raises(ArmorError, match="from batch to batch"):
            calls.add("2", [_call(torch.zeros(4), table=table)])


@pytest.mark.parametrize(
    "kind", [lambda t: SimpleNamespace(t=[t]), lambda t: t.numpy(), lambda t: {t.item()}]
)
def test_objects_count_by_what_they_hold(kind: Any) -> None:
    """One that differs cannot be kept for each batch, nor the first one's be used for all."""
    calls = BlockCalls()
    for batch in "01":
        assert calls.add(batch, [_call(torch.zeros(4), kind(torch.tensor([1])))]) == [{}]
    with pytest.raises(ArmorError, match="another 'shared' from batch to batch"):
        calls.add("2", [_call(torch.zeros(4), kind(torch.tensor([2])))])


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_what_a_block_hands_on_reaches_later_ones_and_travels(kind: Any) -> None:
    shared = kind()
    hidden = torch.randn(2, 3, 4)
    call = _call(torch.zeros(4), shared)
    after = call.run(Block("store"), State(hidden))
    assert not shared
    assert len(after.carried) == 2
    part = {**after.named("0"), "1": torch.zeros(2, 3, 4)}
    (batch, travelled), (_, other) = states(part)
    assert batch == "0"
    assert not other.carried
    assert of_batch(part, "0").keys() == after.carried.keys()
    middle = call.run(Block(), travelled)
    assert middle.carried.keys() == after.carried.keys()
    assert torch.equal(call.run(Block("read"), middle).hidden, hidden + 2 * hidden + 3 * hidden)
    with pytest.raises(KeyError):
        call.run(Block("read"), State(hidden))


class Counting(nn.Module):
    """Hands on something that is no tensor."""

    def forward(self, hidden: Tensor, more: Tensor, shared: Any, table: Any) -> Tensor:
        shared["calls"] = 1
        return hidden


def test_what_is_no_tensor_is_not_handed_on() -> None:
    with pytest.raises(ArmorError, match="'calls'"):
        _call(torch.zeros(4), {}).run(Counting(), State(torch.zeros(2, 3, 4)))
