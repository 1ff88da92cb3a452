"""Whether layers are prepared, by whom, and which backend then runs them: what users cannot see."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from armor.bench.cases import REAL, ROWS, in_words
from armor.bench.check import Check, broken
from armor.bench.forms import Member, dtypes_of, name_of, random_member
from armor.bench.layers import backend_of
from armor.errors import ArmorError
from armor.linear import ArmorLinear, held_bytes
from armor.runtime import backends, use
from armor.runtime.dispatch import supports
from armor.runtime.registry import BACKENDS, REFERENCE, candidates
from armor.sparse.levels import CORES


def check_prepared(device: torch.device) -> Iterator[Check]:
    """A real layer in each dtype, and with each rounded core: as chosen, then as asked for."""
    usual, *others = dtypes_of(device)
    plain = [(dtype, None) for dtype in (usual, *others)]
    for dtype, core in [*plain, *((usual, core) for core in CORES)]:
        yield _prepared(None, dtype, core, device)
    for status in backends():
        entry = BACKENDS[status.name]
        if status.usable and not entry.devices and status.name != REFERENCE:
            for core in entry.cores:
                yield _prepared(status.name, usual, core, device)


def _prepared(
    name: str | None, dtype: torch.dtype, core: str | None, device: torch.device
) -> Check:
    """Args: name: the backend that is asked for, None for those chosen."""
    shape = REAL[-1]
    what, where = f"prepare {name or ''}".rstrip(), f"{shape.name}, {name_of(dtype, core)}"
    try:
        with use(name):
            layer = random_member(Member(shape, core), dtype, device)
            layer.prepare()
            runs = [f"{in_words(n)} on {backend_of(layer, n, device)}" for n in (1, ROWS[-1])]
            verdict = f"of dense's bytes; {_how(layer, device)}; {', '.join(runs)}"
    except ArmorError as error:  # ARMOR_BACKEND asks for one that does not read such a layer
        return Check(what, where, str(error))
    except Exception as error:
        return broken(what, where, error)
    dense = shape.out_features * shape.in_features * dtype.itemsize
    return Check(what, where, verdict, held_bytes(layer) / dense)


def _how(layer: ArmorLinear, device: torch.device) -> str:
    """Such as "prepared by semi_structured, values held once", or why it is not prepared."""
    call = layer.call()
    if call.prepared is not None:
        own = (tensor.untyped_storage().data_ptr() for tensor in (layer.core_values, call.prepared))
        times = "once" if len(set(own)) == 1 else "twice"
        return f"prepared by {call.prepared_by}, values held {times}"
    for name in candidates(device, ROWS[-1]):
        if BACKENDS[name].only_prepared:
            packed = call.layer
            asked = packed.shape, packed.dtype, device, ROWS[-1], packed.pattern, packed.core
            reason = supports(name, *asked).reason or "its form would hold the values twice"
            return f"not prepared for {name}: {reason}"
    return "nothing to prepare"
