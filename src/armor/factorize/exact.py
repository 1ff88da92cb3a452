"""The exact solver: block coordinate descent in closed form, annealed, extrapolated, certified.

One iteration minimises the proxy loss exactly over B, then A, then every group of the core in
turn, so it cannot rise. Two things go wrong with that alone, and each phase cures one:

1. It gets stuck: a group's pair is best only for the wrappers that grew around it. So the first
   iterations fit the core to a target with random errors, as large as those that are left. The
   masks wander while the wrappers find their shape, and the noise falls with the loss by itself
   (a simulated annealing without a schedule). Nothing of this is kept unless it ends up lower.
2. It crawls at the end. So each further iteration starts a leap beyond the best point found; a
   leap that does not pay is dropped, and a plain iteration follows.

What is kept never gets worse.

The entries of an unstructured core compete all over the matrix: while they are shaken, and for some
quiet iterations after that, each has a price, which follows their number; then that is brought to
the budget and stays in every group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from armor.factorize.masks import mask_of
from armor.factorize.price import Price, filled
from armor.factorize.problem import Problem
from armor.factorize.state import better_first
from armor.factorize.workspace import Workspace
from armor.sparse.factors import Factors
from armor.sparse.pattern import TWO_OF_FOUR, Pattern

DEFAULT_ITERATIONS = 100
#: The noise, in times of the present error, and the share of the iterations that are shaken.
NOISE, SHAKEN = 0.9, 0.6
#: Wrappers larger than this share of the matrix take longer to descend, and have less to gain.
LARGE_WRAPPERS, SHAKEN_LARGE = 0.22, 0.3
#: Unstructured: entries move between groups only while they have a price, so that counts for more;
#: and the share that is priced, but not shaken any more.
SHAKEN_UNSTRUCTURED, PRICED = 0.75, 0.15
#: Extrapolation: growth after a success, decay after a failure, and the range of the step.
GROWTH, DECAY, SMALLEST, LARGEST = 1.1, 0.6, 0.3, 1.0
#: Give up when this many iterations took less than this share off the loss.
WINDOW, LEAST_GAIN = 10, 0.005


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
        on_iteration: called with the relative loss after each iteration.
        pattern: of every start, and of the result.

    Returns:
        The factors, and the loss of the best point at the start and after each iteration relative
        to that of ``W_hat = 0``: a sequence that never rises.
    """
    work = Workspace(problem, block, pattern)
    zero = problem.zero_loss()
    best = min((work.start(start) for start in starts), key=lambda state: float(state.loss))
    other = best.copy()
    losses = [best.loss / zero]
    step = torch.ones((), dtype=best.core.dtype, device=best.core.device)
    leap = torch.zeros_like(step)
    generator = torch.Generator(best.core.device).manual_seed(seed)
    shaken, last = _phases(problem, block, iterations, pattern)
    count = pattern.count((work.rows, work.cols))
    price = Price(problem, count) if pattern.is_unstructured else None
    for turn in range(last):
        noise = NOISE if turn < shaken else 0.0
        work.shake(other, noise, generator, None if price is None else price.value)
        if price is not None:
            price.follow(other, pattern)
        losses.append(losses[-1])
        if on_iteration is not None:
            on_iteration(float(losses[-1]))
    if price is not None:
        work.settle(other, count)
    for turn in range(1, iterations - last + 1):
        if turn > 1:  # the first goes on from where the noise has led
            other.leap_from(best, leap)
        work.iterate(other)
        best, other, improved = better_first(best, other)
        was_leap = leap > 0
        grown = torch.where(improved, (step * GROWTH).clamp(max=LARGEST), step)
        step = torch.where(was_leap & ~improved, (step * DECAY).clamp(min=SMALLEST), grown)
        leap = torch.where(improved, step, 0.0)
        losses.append(best.loss / zero)
        if on_iteration is not None:
            on_iteration(float(losses[-1]))
        if turn % WINDOW == 0 and losses[-1] >= (1 - LEAST_GAIN) * losses[-1 - WINDOW]:
            break  # asked rarely: on a GPU the answer has to be waited for
    core = best.core[: work.rows, : work.cols].contiguous()
    mask = mask_of(best.choice, pattern)[: work.rows, : work.cols].contiguous()
    if pattern.is_unstructured:
        mask = filled(mask, count)
    return Factors(core, mask, best.left, best.right, pattern), torch.stack(losses).tolist()


def _phases(problem: Problem, block: int, iterations: int, pattern: Pattern) -> tuple[int, int]:
    """How many iterations are shaken, and after how many the descent begins."""
    if pattern.is_unstructured:
        shaken = int(SHAKEN_UNSTRUCTURED * iterations)
        return shaken, shaken + int(PRICED * iterations)
    rows, cols = problem.target.shape
    is_large = block * (1 / rows + 1 / cols) > LARGE_WRAPPERS
    shaken = int((SHAKEN_LARGE if is_large else SHAKEN) * iterations)
    return shaken, shaken
