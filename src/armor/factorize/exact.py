"""The exact solver: block coordinate descent in closed form, annealed, extrapolated, certified.

One iteration minimises the proxy loss exactly over B, then A, then every group of the core in
turn, so it cannot rise. Two things go wrong with that alone, and each phase cures one:

1. It gets stuck: a group's mask is best only for the wrappers that grew around it. So the first
   iterations fit the core to a target with random errors, as large as those that are left. The
   masks wander while the wrappers find their shape, and the noise falls with the loss by itself
   (a simulated annealing without a schedule). Nothing of this is kept unless it ends up lower.
2. It crawls at the end. So each further iteration starts from a point extrapolated beyond the best
   one found; if that does not end lower, it is dropped, and a plain iteration follows.

What is kept never gets worse.

The entries of an unstructured core compete all over the matrix: while the core is annealed, and for
some iterations without noise after that, each has a price, which follows their number; then that is
brought to the count and stays in every group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from armor.device import float32_products
from armor.factorize.gpu_workspace import workspace
from armor.factorize.masks import mask_from_choice
from armor.factorize.price import Price, fill_mask, project_to_count
from armor.factorize.problem import Problem
from armor.factorize.state import better_first
from armor.sparse.factors import Factors
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

DEFAULT_ITERATIONS = 60
#: The noise, in times of the present error, and the share of the iterations that have it.
NOISE, ANNEALED = 0.7, 0.6
#: Wrappers larger than this share of the matrix take longer to descend, and have less to gain.
LARGE_OVERHEAD, ANNEALED_LARGE_OVERHEAD = 0.22, 0.3
#: Unstructured: entries move between groups only while they have a price, so that counts for more;
#: and the share of the iterations after the noise in which they still have one.
ANNEALED_UNSTRUCTURED, PRICED = 0.75, 0.15
#: Extrapolation: growth after a success, decay after a failure, and the range of the step.
STEP_GROWTH, STEP_DECAY, MIN_STEP, MAX_STEP = 1.1, 0.6, 0.3, 1.0
#: On a GPU losses are asked for so many at a time, as each answer has to be waited for.
REPORT_EVERY = 10
#: Give up when this many iterations took less than this share off the loss.
STALL_ITERATIONS, MIN_IMPROVEMENT = 10, 0.005


@float32_products()
def factorize(
    problem: Problem,
    block: int,
    starts: Iterable[Factors],
    iterations: int = DEFAULT_ITERATIONS,
    seed: int = 0,
    on_iteration: Callable[[float], None] | None = None,
    pattern: Pattern = TWO_OF_FOUR,
) -> tuple[Factors, list[float]]:
    """Factorise one matrix from the best of `starts`.

    Args:
        problem: target and moment, float32 or float64.
        block: wrapper block b, a multiple of 4 and of the pattern's group; a last partial block
            is padded.
        starts: sparse matrices without wrappers, taken one by one; the result is never worse than
            any of them.
        iterations: ceiling.
        seed: of the noise.
        on_iteration: called with the relative loss of each iteration; on a GPU, `REPORT_EVERY` at
            a time.
        pattern: of every start, and of the result.

    Returns:
        The factors, and the loss of the best point at the start and after each iteration relative
        to that of ``W_hat = 0``: a sequence that never rises.
    """
    work = workspace(problem, block, pattern)
    zero = problem.zero_loss()
    best = min((work.start(start) for start in starts), key=lambda state: float(state.loss))
    trial = best.copy()
    losses = _Losses(best.loss / zero, on_iteration)
    generator = torch.Generator(best.core.device).manual_seed(seed)
    annealed, before_descent = _phases(problem, block, iterations, pattern)
    count = pattern.count((work.rows, work.cols))
    price = Price(problem, count) if pattern.is_unstructured else None
    for turn in range(before_descent):
        noise = NOISE if turn < annealed else 0.0
        work.anneal(trial, noise, generator, None if price is None else price.value)
        if price is not None:
            price.update(trial, pattern)
        losses.append(losses[-1])
    if price is not None:
        project_to_count(work, trial, count)
    step = torch.ones((), dtype=best.core.dtype, device=best.core.device)
    next_step = torch.zeros_like(step)  # 0: a plain iteration from the best point
    for turn in range(1, iterations - before_descent + 1):
        if turn > 1:  # the first starts from where the noise has led
            trial.extrapolate_from(best, next_step)
        work.iterate(trial)
        best, trial, improved = better_first(best, trial)
        was_extrapolated = next_step > 0
        grown = torch.where(improved, (step * STEP_GROWTH).clamp(max=MAX_STEP), step)
        shrunk = (step * STEP_DECAY).clamp(min=MIN_STEP)
        step = torch.where(was_extrapolated & ~improved, shrunk, grown)
        next_step = torch.where(improved, step, 0.0)
        losses.append(best.loss / zero)
        is_due = turn % STALL_ITERATIONS == 0  # rarely: on a GPU the answer has to be waited for
        if is_due and losses[-1] >= (1 - MIN_IMPROVEMENT) * losses[-1 - STALL_ITERATIONS]:
            break
    core = best.core[: work.rows, : work.cols].contiguous()
    mask = mask_from_choice(best.choice, pattern)[: work.rows, : work.cols].contiguous()
    if pattern.is_unstructured:
        mask = fill_mask(mask, count)
    return Factors(core, mask, best.left, best.right, pattern), losses.all()


class _Losses:
    """The losses so far, on the device, and who wants to hear of them.

    Args:
        first: at the start. report: called with each of the others.
    """

    def __init__(
        self, first: Float[Tensor, ""], report: Callable[[float], None] | None = None
    ) -> None:
        self._held = [first]
        self._report = report
        self._every = 1 if first.device.type == "cpu" else REPORT_EVERY
        self._told = 1

    def __getitem__(self, place: int) -> Float[Tensor, ""]:
        return self._held[place]

    def append(self, loss: Float[Tensor, ""]) -> None:
        """One more, after an iteration."""
        self._held.append(loss)
        if len(self._held) - self._told == self._every:
            self._tell()

    def all(self) -> list[float]:
        """All of them; those that nobody was told of yet are told."""
        self._tell()
        return torch.stack(self._held).tolist()

    def _tell(self) -> None:
        if self._report is None or self._told == len(self._held):
            return
        new, self._told = self._held[self._told :], len(self._held)
        for loss in torch.stack(new).tolist():
            self._report(loss)


def _phases(problem: Problem, block: int, iterations: int, pattern: Pattern) -> tuple[int, int]:
    """How many iterations have noise, and after how many the descent begins."""
    if pattern.is_unstructured:
        annealed = int(ANNEALED_UNSTRUCTURED * iterations)
        return annealed, annealed + int(PRICED * iterations)
    rows, cols = problem.target.shape
    is_large = block * (1 / rows + 1 / cols) > LARGE_OVERHEAD
    annealed = int((ANNEALED_LARGE_OVERHEAD if is_large else ANNEALED) * iterations)
    return annealed, annealed
