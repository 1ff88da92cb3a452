"""Single groups of 4 against brute residual."""

import pytest
import torch

from armor.factorize.groups import Groups, _pairs, pick
from armor.factorize.inverses import pair_inverses
from armor.factorize.kernels.reference import PAIRS


def make_groups(count: int = 50) -> Groups:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    factor = normal(count, 4, 6)
    group_gram = factor @ factor.mT
    choice = torch.randint(0, 6, (count,), generator=draw, dtype=torch.uint8)
    current = torch.zeros(count, 4, dtype=torch.float64)
    for row, code in enumerate(choice.tolist()):
        current[row, list(PAIRS[code])] = normal(2)
    scale = normal(count).square() + 0.1
    return Groups(
        normal(count, 4), current, choice, scale, group_gram, pair_inverses(group_gram)[:, 0]
    )


def test_best_is_the_best_of_all_pairs() -> None:
    groups = make_groups()
    values, codes, gains = groups.best_pairs()
    for row in range(len(values)):
        hessian = groups.scale[row] * groups.group_gram[row]
        # Minimise s^T Q s - 2 s^T p; the residual is p - Q s at the current values.
        partial_residual = groups.residual[row] + hessian @ groups.current[row]

        def loss(s: torch.Tensor, hessian=hessian, partial_residual=partial_residual) -> float:
            return float(s @ hessian @ s - 2 * s @ partial_residual)

        candidates = []
        for pair in PAIRS:
            at = list(pair)
            s = torch.zeros(4, dtype=torch.float64)
            s[at] = torch.linalg.solve(hessian[at][:, at], partial_residual[at])
            candidates.append(s)
        losses = [loss(s) for s in candidates]
        best = min(range(6), key=losses.__getitem__)
        assert codes[row] == best
        torch.testing.assert_close(values[row], candidates[best])
        assert float(gains[row]) == pytest.approx(loss(groups.current[row]) - losses[best])


def test_the_table_of_pairs_is_made_once_a_device() -> None:
    """What `--solver adam` looks at in each iteration would be copied to a GPU each time."""
    for device in ("cpu", "meta"):
        assert _pairs(torch.device(device)) is _pairs(torch.device(device))


def test_a_group_without_scale_stays() -> None:
    groups = make_groups(3)
    groups.scale[1] = 0.0
    values, codes, gains = groups.best_pairs()
    assert torch.equal(values[1], groups.current[1])
    assert codes[1] == groups.choice[1]
    assert gains[1] == 0


def test_pick_in_proportion() -> None:
    weights = torch.tensor([1.0, 0.0, 5.0, 2.0, 0.0]).expand(800, 5)
    chance = (torch.arange(800) + 0.5) / 800
    counts = pick(weights, chance).bincount(minlength=5)
    assert counts.tolist() == [100, 0, 500, 200, 0]


def test_pick_without_any_weight_is_a_valid_index() -> None:
    assert 0 <= int(pick(torch.zeros(1, 4), torch.tensor([0.5]))) < 4
