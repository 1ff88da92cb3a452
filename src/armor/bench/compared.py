"""Every backend against the reference: layers, layers that share an input, gated MLPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn

from armor.bench.cases import FEW, MLPS, PATTERNS, ROWS, Case, in_words, sharing, single
from armor.bench.check import Check, Trial, apart, broken, compare, judged
from armor.bench.forms import Member, dtypes_of, name_of, random_member
from armor.bench.shapes import Shape
from armor.linear import prepare
from armor.runtime import Call, backends, use
from armor.runtime.backend import Verdict
from armor.runtime.dispatch import forced, gating, run, run_gated, supports
from armor.runtime.gated import Gated, Gating
from armor.runtime.registry import BACKENDS, REFERENCE, load
from armor.sparse.levels import CORES
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

#: More than so much of the norm apart from the reference is wrong, by dtype.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
#: The same of backends that also round the inputs of a core, to 8-bit floats.
ROUNDS_INPUTS = {"float8": 0.06}


def check_layers(device: torch.device) -> Iterator[Check]:
    """Every backend on one layer at a time, in each form that it takes."""
    dtypes = dtypes_of(device)
    for status in backends():
        name, what = status.name, f"runtime {status.name}"
        if name == REFERENCE:
            yield Check(what, "", "what the others are compared with, in float32")
            continue
        if not status.usable:
            yield Check(what, "", status.reason)
            continue
        yield from _not_taken(name, device)
        for core, pattern in _forms():
            for dtype in dtypes if pattern == TWO_OF_FOUR else dtypes[:1]:
                if _takes(name, dtype, device, core, pattern):
                    cases = single(core, pattern, dtypes.index(dtype))
                    trials = _trials(name, cases, dtype, device)
                    where = name_of(dtype, core, pattern)
                    yield from compare(what, where, trials, _tolerance(name, dtype))


def check_shared(device: torch.device) -> Iterator[Check]:
    """Layers that share an input, as modules run them: on each backend, and on those chosen."""
    dtypes = dtypes_of(device)
    usable = [status.name for status in backends() if status.usable and status.name != REFERENCE]
    for name in (*usable, None):
        what = f"shared {name or '(as chosen)'}"
        if name is None and (asked := forced()) is not None:
            yield Check(what, "", f"nothing is chosen: ARMOR_BACKEND is {asked}")
            continue
        for dtype in dtypes if name is not None else dtypes[:1]:
            cases = [
                case
                for case in sharing(dtypes.index(dtype))
                if name is None or all(_takes(name, dtype, device, m.core) for m in case.members)
            ]
            trials = _trials(name, cases, dtype, device)
            yield from compare(what, name_of(dtype), trials, _tolerance(name, dtype))


def check_mlps(device: torch.device) -> Iterator[Check]:
    """Gated MLPs as one, on every backend that does it."""
    able = [own.name for own in backends() if own.usable and isinstance(load(own.name), Gating)]
    if not able:
        yield Check("mlp", "", "run layer by layer: no backend here computes gated MLPs as one")
    dtypes = [dtype for dtype in dtypes_of(device) if dtype != torch.float32]
    for name in able:
        for dtype in dtypes:
            for width, inner, block in MLPS if dtype == dtypes[0] else MLPS[:1]:
                what = f"mlp {name}"
                where = f"{width}x{inner}, {name_of(dtype)}"
                if refusal := _takes(name, dtype, device).reason:
                    yield Check(what, where, refusal)
                    continue
                try:
                    error = _mlp_error(name, (width, inner, block), dtype, device)
                except Exception as raised:
                    yield broken(what, where, raised)
                    continue
                if error is None:
                    yield Check(what, where, "run layer by layer")
                else:
                    yield judged(what, where, error, TOLERANCE[dtype])


def _forms() -> list[tuple[str | None, Pattern]]:
    """What cores are rounded to, and patterns."""
    return [(core, TWO_OF_FOUR) for core in (None, *CORES)] + [(None, own) for own in PATTERNS]


def _not_taken(name: str, device: torch.device) -> Iterator[Check]:
    """For dtypes, cores and patterns that a backend refuses, its reason."""
    dtypes, cores = dtypes_of(device), (None, *CORES)
    core = next((own for own in cores if own in BACKENDS[name].cores), None)
    takes = partial(_takes, name, device=device)
    dtype = next((own for own in dtypes if takes(own, core=core)), None)
    if dtype is None:
        yield Check(f"runtime {name}", "", takes(dtypes[0], core=core).reason)
        return
    asked: list[tuple[dict[str, Verdict], str]] = [
        ({name_of(own): takes(own, core=core) for own in dtypes}, ""),
        ({own or "unrounded": takes(dtype, core=own) for own in cores}, " cores"),
        ({str(own): takes(dtype, pattern=own) for own in PATTERNS if core is None}, ""),
    ]
    for verdicts, of in asked:
        reasons = {key: verdict.reason for key, verdict in verdicts.items() if not verdict}
        if reasons:
            where = ", ".join(reasons) + of
            yield Check(f"runtime {name}", where, next(iter(reasons.values())))


def _takes(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    core: str | None = None,
    pattern: Pattern = TWO_OF_FOUR,
) -> Verdict:
    """Whether a backend computes layers of a form, by the example of one."""
    return supports(name, (256, 512), dtype, device, ROWS[-1], pattern, core)


def _tolerance(name: str | None, dtype: torch.dtype) -> float:
    return max(TOLERANCE[dtype], ROUNDS_INPUTS.get(name or "", 0.0))


def _trials(
    name: str | None, cases: Sequence[Case], dtype: torch.dtype, device: torch.device
) -> Iterator[Trial]:
    """Each case with each of its numbers of rows, on backend `name` (None: on those chosen)."""
    tried = ROWS if name is None or BACKENDS[name].rows != "many" else FEW
    for case in cases:
        made = cache(partial(_Layers, name, case, dtype, device))
        for rows in (rows for rows in case.rows if rows in tried):
            refusal = "" if name is None else _refusal(name, case, dtype, device, rows)
            yield Trial(f"{case.name}, {in_words(rows)}", partial(_error, made, rows), refusal)


def _error(made: Callable[[], _Layers], rows: int) -> float:
    return made().error(rows)


def _refusal(name: str, case: Case, dtype: torch.dtype, device: torch.device, rows: int) -> str:
    """Why a backend does not compute one of the layers; "" if it computes all."""
    for (_, out, into, _, pattern), core, _, _ in case.members:
        verdict = supports(name, (out, into), dtype, device, rows, pattern, core)
        if not verdict:
            return verdict.reason
    return ""


class _Layers:
    """The layers of a case as neighbours in a model, inputs, and what the reference makes of them.

    Args:
        name: the backend that they are prepared for and run on, None for those chosen.
    """

    def __init__(
        self, name: str | None, case: Case, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._name = name
        self._layers = [random_member(member, dtype, device) for member in case.members]
        self._x = _inputs(max(case.rows), self._layers[0].in_features, dtype, device)
        with use(REFERENCE), torch.inference_mode():
            x = self._x.float()
            self._expected = [run(x, _wide(layer.call())) for layer in self._layers]
        with use(name):
            prepare(nn.ModuleList(self._layers))

    def error(self, rows: int) -> float:
        """Of the layer that is furthest from the reference; not a number where one has such."""
        x = self._x[:rows]
        with use(self._name), torch.inference_mode():
            found = [layer(x) for layer in self._layers]
            if len(found) > 1:  # by now they know that they share it
                found = [layer(x) for layer in self._layers]
        each = zip(found, self._expected, strict=True)
        errors = [apart(y, expected[:rows]) for y, expected in each]
        return float(torch.tensor(errors, dtype=torch.float64, device="cpu").max())


def _mlp_error(
    name: str, sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> float | None:
    """How far a gated MLP as one is from the reference, at most, for few rows and for many; None
    where it is run layer by layer."""
    width, inner, block = sizes
    shapes = [Shape("", inner, width, block)] * 2 + [Shape("", width, inner, block)]
    layers = [random_member(Member(shape), dtype, device) for shape in shapes]
    x = _inputs(ROWS[-1], width, dtype, device)
    with use(REFERENCE), torch.inference_mode():
        gate, up, down = (_wide(layer.call()) for layer in layers)
        expected = run_gated(x.float(), Gated(gate, up, down, "silu"))
    with use(name):
        for layer in layers:
            layer.prepare()
    gate, up, down = (layer.call() for layer in layers)
    gated = Gated(gate, up, down, "silu")
    with use(name), torch.inference_mode():
        if gating(x, gated) is None:
            return None
        return max(apart(run_gated(x[:rows], gated), expected[:rows]) for rows in FEW)


def _inputs(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(rows, width, dtype=torch.float32, device=device).to(dtype)


def _wide(call: Call) -> Call:
    """The same numbers in float32."""
    bias = None if call.bias is None else call.bias.float()
    return Call(call.layer.to(torch.float32), bias)
