"""Layers with the same input (query, key and value; gate and up) run together."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from armor.runtime.api import linears
from armor.runtime.backend import Call


@runtime_checkable
class Member(Protocol):
    """What `SharedInputs` needs of a layer."""

    def alone(self, x: Tensor) -> Tensor:
        """Its output."""
        ...

    def call(self) -> Call:
        """What computes it."""
        ...


class SharedInputs:
    """Learns which of its members get the same tensor, and then computes these at once.

    The first of them to be called computes for all; each other one only takes what is waiting for
    it, if it is really given the same tensor. So a wrong guess costs time and is given up, but
    never changes a result. Nothing is learned while compiling: run the model once before.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = list(members)
        self._followers: list[list[int]] = [[] for _ in members]
        self._refused: set[int] = set()
        self._last: tuple[weakref.ref[Tensor], int] | None = None
        self._waiting: tuple[Tensor, dict[int, Tensor]] | None = None

    def run(self, number: int, x: Tensor) -> Tensor:
        """The output of member `number` for x (..., in)."""
        waiting = self._waiting
        if waiting is not None and waiting[0] is x and number in waiting[1]:
            y = waiting[1].pop(number)
            if not waiting[1]:
                self._waiting = None
            return y
        member = self._members[number]
        if torch.is_autocast_enabled(x.device.type):
            return member.alone(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return member.alone(x)
        if not torch.compiler.is_compiling():
            self._learn(number, x)
        numbers = [number, *self._followers[number]]
        calls = [self._members[n].call() for n in numbers]
        if len(calls) == 1 or not all(is_ready(call, x) for call in calls):
            return member.alone(x)
        first, *others = linears(x, calls)
        self._waiting = (x, dict(zip(numbers[1:], others, strict=True)))
        return first

    def _learn(self, number: int, x: Tensor) -> None:
        if self._waiting is not None:  # not taken since: these were guessed wrong
            self._refused |= self._waiting[1].keys()
            self._waiting = None
            self._followers = [
                [n for n in followers if n not in self._refused] for followers in self._followers
            ]
        if self._last is not None and self._last[0]() is x and number not in self._refused:
            first = self._last[1]
            if number not in (first, *self._followers[first]):
                self._followers[first].append(number)
        else:
            self._last = (weakref.ref(x), number)

    def __getstate__(self) -> dict[str, Any]:
        return {"_members": self._members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SharedInputs.__init__(self, state["_members"])


def is_ready(call: Call, x: Tensor) -> bool:
    """Whether the tensors of a layer are here (not offloaded), of x's dtype, and frozen."""
    layer = call.layer
    return (
        layer.core_values.device == x.device
        and layer.dtype == x.dtype
        and not any(tensor.requires_grad for tensor in call.tensors())
    )
