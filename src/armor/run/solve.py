"""Solving one layer: moments in, factors and their record out. A pure function of tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from armor.baselines.nowag import normalise as normalised_weight
from armor.baselines.nowag import nowag
from armor.baselines.sparsegpt import sparsegpt
from armor.calibrate.sample import Sample
from armor.calibrate.targets import (
    USUAL_DAMPING,
    Compensation,
    choose_compensation,
    compensated,
    missed_moment,
    regularised,
)
from armor.checkpoint.records import LayerRecord
from armor.config import PruneConfig
from armor.factorize.adam import ITERATIONS, RECORD_EVERY, factorize_adam
from armor.factorize.exact import DEFAULT_ITERATIONS, factorize
from armor.factorize.problem import Problem
from armor.factorize.rounding import Storage, between_identities, round_core, round_factors
from armor.factorize.scaling import balance, fold
from armor.memory import trim_memory
from armor.methods import METHODS
from armor.run.plan import LayerPlan, compact_bytes
from armor.run.threads import SHARED_FROM
from armor.sparse.factors import Factors
from armor.sparse.pattern import Pattern


@dataclass(frozen=True)
class LayerInputs:
    """What the calibration says about one layer.

    Attributes:
        weight: W, (out, in), float32 or float64: that is computed in.
        second: E[x x^T], (in, in), as measured.
        missed: E[e x^T], (out, in), with e what the weight misses on the pruned stream, for the
            compensated target, else None.
        fitted, held_out: samples of tokens of which the moments are, and of others.
    """

    weight: Tensor
    second: Tensor
    missed: Tensor | None = None
    fitted: Sample | None = None
    held_out: Sample | None = None

    @classmethod
    def of(cls, weight: Tensor, moments: Mapping[str, Tensor]) -> LayerInputs:
        """Args: moments: as `Moments.means` gives them, in the dtype of `weight`."""
        missed = moments.get("missed")
        if "cross" in moments:
            missed = missed_moment(weight, moments["second"], moments["cross"])
        return cls(
            weight,
            moments["second"],
            missed,
            Sample.named("fitted", moments),
            Sample.named("held_out", moments),
        )

    def compensation(self, config: PruneConfig) -> Compensation | None:
        """How far to go from the weight; None for a target that is the weight."""
        if self.missed is None:
            return None
        if config.target_damping is not None or self.held_out is None:
            return Compensation(config.target_damping or USUAL_DAMPING)
        return choose_compensation(self.weight, self.second, self.missed, self.held_out)


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
    method, pattern = METHODS[config.method], Pattern.parse(config.pattern)
    how = inputs.compensation(config) if method.wrappers else None
    problem = make_problem(inputs, config, how)
    output = Problem(problem.target, inputs.second)
    samples = {"fitted": inputs.fitted, "held_out": inputs.held_out}
    weight = None if inputs.held_out is None else inputs.weight
    del inputs  # the compensated target has taken the place of the weight
    starts = {"nowag": nowag(problem, pattern)}
    if problem.is_full:
        starts["sparsegpt"] = sparsegpt(problem, pattern)
    judge = _Judge.of(problem, normalise=method.wrappers and config.objective == "diag")
    storage = _storage(config, dtype)
    bounds = {
        name: judge.loss(_as_stored(start, problem, storage, dtype))
        for name, start in starts.items()
    }
    solved = _Solved()
    if method.wrappers:
        factors = _solve(solved, judge, plan, starts, config, storage, dtype, begin)
    else:
        factors = starts.get(config.method) or _without_wrappers(problem, plan, config)
        factors = _as_stored(factors, problem, storage, dtype)
    loss = judge.loss(factors)
    note = "solved in float64: float32 was too coarse" if last_resort else ""
    if last_resort and not loss <= min(bounds.values()):
        best = min(bounds, key=bounds.__getitem__)
        start = _start_again(best, judge, output.target, pattern)
        start = _as_stored(start, problem, storage, dtype)
        assert plan.block is not None
        factors = between_identities(start, plan.block, storage)
        loss = judge.loss(factors)
        note = f"kept as {best} has it: nothing better was found in {dtype}".replace("torch.", "")
    certificate = (config.solver == "adam" or solved.never_rose) and loss <= min(bounds.values())
    if method.wrappers and not certificate:
        raise CertificateError(f"{plan.name}: loss {loss} breaks the certificate {bounds}")
    pruned = factors.dense().to(output.target.dtype)
    errors = {
        f"{name}_error": sample.error(weight, pruned)
        for name, sample in samples.items()
        if sample is not None and weight is not None
    }
    return factors, LayerRecord(
        shape=plan.shape,
        block=plan.block,
        loss=loss,
        nowag_loss=bounds["nowag"],
        sparsegpt_loss=bounds.get("sparsegpt"),
        certificate=certificate,
        losses=solved.losses,
        seconds=time.perf_counter() - begin,
        note="; ".join(filter(None, (plan.note, note))),
        times=[round(seconds, 5) for seconds in solved.times],
        output_energy=output.loss(torch.zeros_like(output.target)),
        output_error=output.loss(pruned),
        target_damping=None if how is None else how.damping,
        belief=None if how is None else how.belief,
        **errors,
        unrounded_loss=solved.unrounded_loss,
        nearest_loss=solved.nearest_loss,
        compact_bytes=compact_bytes(plan, config, dtype.itemsize),
    )


def _storage(config: PruneConfig, dtype: torch.dtype) -> Storage | None:
    """How a layer with the settings `config` is rounded; None: it is not."""
    return None if config.core is None else Storage(config.core, config.wrappers, dtype)


def _as_stored(
    factors: Factors, problem: Problem, storage: Storage | None, dtype: torch.dtype
) -> Factors:
    """Factors without wrappers in `dtype`, or rounded to the nearest."""
    return factors.cast(dtype) if storage is None else round_core(problem, factors, storage)


def _without_wrappers(problem: Problem, plan: LayerPlan, config: PruneConfig) -> Factors:
    method = METHODS[config.method]
    more = {"rank": plan.rank} if method.low_rank else {}
    return method.load()(problem, Pattern.parse(config.pattern), **more)


@dataclass(frozen=True)
class _Judge:
    """The problem that losses are of: normalised for the paper's objective, else as it is.

    Attributes:
        problem: over ``diag(rows)^-1 W diag(cols)^-1``. rows: (out, 1), or () for none.
        cols: (in,), or (). zero: the loss of a zero weight.
    """

    problem: Problem
    rows: Tensor
    cols: Tensor
    zero: float

    @classmethod
    def of(cls, problem: Problem, normalise: bool) -> _Judge:
        rows = cols = torch.ones((), dtype=torch.float32, device=problem.target.device)
        if normalise:
            normalised, norms, cols = normalised_weight(problem.target)
            rows = norms.unsqueeze(-1)
            problem = Problem(normalised, problem.moment)
        return cls(problem, rows, cols, problem.zero_loss())

    def own_columns(self) -> tuple[Problem, Tensor | None]:
        """The same loss of a target that lacks the scale of rows alone, and that scale, (out, 1).

        That is None where nothing is normalised.
        """
        if not self.rows.ndim:
            return self.problem, None
        target, moment = self.problem.target, self.problem.moment
        return Problem(target * self.cols, moment / self.cols.square()), self.rows

    def loss(self, factors: Factors) -> float:
        """Of `factors` of the weight as it is, relative to that of a zero weight."""
        dense = factors.dense().to(self.problem.target.dtype)
        return self.problem.loss(dense / self.rows / self.cols) / self.zero


@dataclass
class _Solved:
    """What becomes known of a layer with wrappers while it is solved; see `LayerRecord`."""

    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    unrounded_loss: float | None = None
    nearest_loss: float | None = None

    @property
    def never_rose(self) -> bool:
        """Whether the losses fell all the way; Adam's may rise."""
        return all(after <= before for before, after in pairwise(self.losses))


def _solve(
    solved: _Solved,
    judge: _Judge,
    plan: LayerPlan,
    starts: dict[str, Factors],
    config: PruneConfig,
    storage: Storage | None,
    dtype: torch.dtype,
    begin: float,
) -> Factors:
    """The factors as they are stored; fills `solved`. Empties `starts`."""
    factors, solved.losses, solved.times = _factorize(judge, plan, starts, config, begin)
    if storage is None:
        return factors.cast(dtype)
    solved.unrounded_loss = judge.loss(factors.cast(dtype))
    problem, row_scale = judge.own_columns()
    rounded, nearest, _ = round_factors(problem, factors, storage, row_scale)
    solved.nearest_loss = judge.loss(nearest)
    # The certificate is on what is stored: two sums of the same loss may differ in a last digit.
    return rounded if judge.loss(rounded) <= solved.nearest_loss else nearest


def _factorize(
    judge: _Judge,
    plan: LayerPlan,
    starts: dict[str, Factors],
    config: PruneConfig,
    begin: float,
) -> tuple[Factors, list[float], list[float]]:
    """The factors by the solver of `config`, its kept losses, and the seconds from `begin` to each.

    Empties `starts`: each is as large as the weight.
    """

    def scaled() -> Iterator[Factors]:
        for name in list(starts):
            start = starts.pop(name)
            yield replace(start, core=start.core / judge.rows / judge.cols)

    clock: list[float] = []  # after each iteration

    def tick(_loss: float) -> None:
        clock.append(time.perf_counter() - begin)

    if plan.shape[0] * plan.shape[1] >= SHARED_FROM:
        trim_memory()
    first = time.perf_counter() - begin
    assert plan.block is not None
    if config.solver == "adam":
        factors, losses = factorize_adam(
            judge.problem,
            plan.block,
            list(scaled()),
            config.iterations or ITERATIONS,
            config.seed,
            tick,
        )
        clock = _every(RECORD_EVERY, clock)
    else:
        factors, losses = factorize(
            judge.problem,
            plan.block,
            scaled(),
            config.iterations or DEFAULT_ITERATIONS,
            config.seed,
            tick,
            Pattern.parse(config.pattern),
        )
    if config.objective == "diag":
        factors = fold(factors, judge.rows.squeeze(-1), judge.cols)
    return balance(factors), losses, [first, *clock]


def _start_again(name: str, judge: _Judge, target: Tensor, pattern: Pattern) -> Factors:
    """The baseline `name` on the weight as it is."""
    return METHODS[name].load()(Problem(target, judge.problem.moment), pattern)


def _every(step: int, values: list[float]) -> list[float]:
    """Each `step`-th of `values`, and the last."""
    last = values[-1:] if len(values) % step else []
    return values[step - 1 :: step] + last


def make_problem(
    inputs: LayerInputs, config: PruneConfig, how: Compensation | None = None
) -> Problem:
    """Target and moment that `config` asks for; `how`: see `LayerInputs.compensation`."""
    target = inputs.weight
    method = METHODS[config.method]
    moment = config.objective if method.wrappers else method.moment
    if how is not None and inputs.missed is not None:
        target = compensated(target, inputs.second, inputs.missed, how)
    if moment == "diag":
        return Problem(target, inputs.second.diagonal().contiguous())
    if not method.wrappers:
        return Problem(target, inputs.second)  # a method's own damping, if it wants any
    return Problem(target, regularised(inputs.second, config.shrinkage, config.damping))
