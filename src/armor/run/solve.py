"""Solving one layer: moments in, factors and their record out. A pure function of tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from armor import baselines
from armor.baselines.nowag import normalise
from armor.calibrate.targets import compensated, regularised
from armor.checkpoint.records import LayerRecord
from armor.config import PruneConfig
from armor.factorize.adam import ITERATIONS, KEEP, factorize_adam
from armor.factorize.exact import DEFAULT_ITERATIONS, factorize
from armor.factorize.problem import Problem
from armor.factorize.scaling import balance, fold
from armor.run.memory import trim_memory
from armor.run.plan import LayerPlan
from armor.run.threads import SHARED_FROM
from armor.sparse.factors import Factors, with_wrappers
from armor.sparse.pattern import Pattern


@dataclass(frozen=True)
class LayerInputs:
    """What the calibration says about one layer.

    Attributes:
        weight: W, (out, in), float32 or float64: that is computed in.
        second: E[x x^T], (in, in), as measured.
        cross: E[x_dense x^T], (in, in), for the compensated target, else None.
    """

    weight: Tensor
    second: Tensor
    cross: Tensor | None = None


class CertificateError(RuntimeError):
    """What the solver ends at breaks the certificate: rounding errors, or a bug."""


def solve_certified(
    plan: LayerPlan,
    inputs: Callable[[torch.dtype], LayerInputs],
    config: PruneConfig,
    dtype: torch.dtype,
) -> tuple[Factors, LayerRecord]:
    """`solve_layer` in float32; where that breaks the certificate, in float64, with a note.

    Where rounding to `dtype` takes away all that was won, as in a layer that is all but sparse
    already, the best start is kept, between wrappers that do nothing.

    Args:
        inputs: what the calibration says, in the dtype asked for.
    """
    try:
        return solve_layer(plan, inputs(torch.float32), config, dtype)
    except CertificateError:
        return solve_layer(plan, inputs(torch.float64), config, dtype, last_resort=True)


def solve_layer(
    plan: LayerPlan,
    inputs: LayerInputs,
    config: PruneConfig,
    dtype: torch.dtype,
    last_resort: bool = False,
) -> tuple[Factors, LayerRecord]:
    """Prune one layer by the method of `config`; factors are returned in `dtype`.

    Args:
        last_resort: where the factors end up worse than a start, return that one.

    Raises:
        CertificateError: the certificate does not hold.
    """
    begin = time.perf_counter()
    config = plan.settings(config)
    pattern = Pattern.parse(config.pattern)
    problem = make_problem(inputs, config)
    output = Problem(problem.target, inputs.second)
    del inputs  # the compensated target has taken the place of the weight
    starts = {"nowag": baselines.nowag(problem, pattern)}
    if problem.is_full:
        starts["sparsegpt"] = baselines.sparsegpt(problem, pattern)
    rows, cols = torch.ones(()), torch.ones(())
    if config.objective == "diag" and config.method == "armor":
        normalised, row_norms, cols = normalise(problem.target)
        rows = row_norms.unsqueeze(-1)
        problem = Problem(normalised, problem.moment)
    zero = problem.zero_loss()

    def relative(factors: Factors) -> float:
        return problem.loss(factors.dense().to(problem.target.dtype) / rows / cols) / zero

    clock: list[float] = []  # after each iteration

    def tick(loss: float) -> None:
        clock.append(time.perf_counter() - begin)

    bounds = {name: relative(start.cast(dtype)) for name, start in starts.items()}
    if config.method == "armor":
        # One by one: each is as large as the weight.
        scaled = (
            replace(start, core=start.core / rows / cols)
            for start in (starts.pop(name) for name in list(starts))
        )
        if plan.shape[0] * plan.shape[1] >= SHARED_FROM:
            trim_memory()
        times = [time.perf_counter() - begin]
        factors, losses = _factorize(problem, plan, scaled, config, tick)
        times += _every(KEEP if config.solver == "adam" else 1, clock)
        if config.objective == "diag":
            factors = fold(factors, rows.squeeze(-1), cols)
        factors = balance(factors)
    else:
        factors = starts.get(config.method) or baselines.BASELINES[config.method](problem, pattern)
        losses, times = [], []
    factors = factors.cast(dtype)
    loss = relative(factors)
    note = "solved in float64: float32 was too coarse" if last_resort else ""
    if last_resort and not loss <= min(bounds.values()):
        best = min(bounds, key=bounds.__getitem__)
        assert plan.block is not None
        start = baselines.BASELINES[best](Problem(output.target, problem.moment), pattern)
        factors = with_wrappers(start, plan.block).cast(dtype)
        loss = relative(factors)
        note = f"kept as {best} has it: nothing better was found in {dtype}".replace("torch.", "")
    # Adam's loss may rise on the way.
    falling = config.solver == "adam" or all(after <= before for before, after in pairwise(losses))
    certificate = falling and loss <= min(bounds.values())
    if config.method == "armor" and not certificate:
        raise CertificateError(f"{plan.name}: loss {loss} breaks the certificate {bounds}")
    return factors, LayerRecord(
        plan.shape,
        plan.block,
        loss,
        bounds["nowag"],
        bounds.get("sparsegpt"),
        certificate,
        losses,
        time.perf_counter() - begin,
        "; ".join(filter(None, (plan.note, note))),
        [round(seconds, 5) for seconds in times],
        output.loss(torch.zeros_like(output.target)),
        output.loss(factors.dense().to(output.target.dtype)),
    )


def _factorize(
    problem: Problem,
    plan: LayerPlan,
    starts: Iterable[Factors],
    config: PruneConfig,
    tick: Callable[[float], None],
) -> tuple[Factors, list[float]]:
    """By the solver of `config`; its kept losses."""
    assert plan.block is not None
    if config.solver == "adam":
        iterations = config.iterations or ITERATIONS
        return factorize_adam(problem, plan.block, list(starts), iterations, config.seed, tick)
    return factorize(
        problem,
        plan.block,
        starts,
        config.iterations or DEFAULT_ITERATIONS,
        config.seed,
        tick,
        Pattern.parse(config.pattern),
    )


def _every(step: int, values: list[float]) -> list[float]:
    """Each `step`-th of `values`, and the last."""
    last = values[-1:] if len(values) % step else []
    return values[step - 1 :: step] + last


def make_problem(inputs: LayerInputs, config: PruneConfig) -> Problem:
    """Target and moment that `config` asks for."""
    target = inputs.weight
    if inputs.cross is not None and config.method == "armor":
        target = compensated(target, inputs.second, inputs.cross, config.target_damping)
    if config.method == "sparsegpt":
        return Problem(target, inputs.second)  # its own dampening
    if config.method != "armor" or config.objective == "diag":
        return Problem(target, inputs.second.diagonal().contiguous())
    return Problem(target, regularised(inputs.second, config.shrinkage, config.damping))
