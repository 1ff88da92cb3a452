"""The frontend of the sweep: choosing a backend, and the codes it passes on."""

import numpy as np
import pytest
import torch

from armor.errors import ArmorError
from armor.factorize.inverses import pair_inverses
from armor.factorize.kernels import reference, triton
from armor.factorize.masks import choice_from_mask, mask_from_choice
from armor.factorize.sweep import BACKENDS, choose_backend, sweep
from armor.sparse.pattern import TWO_OF_FOUR, Pattern


def arguments() -> list[torch.Tensor]:
    residual = torch.ones(8, 8)
    core, choice = torch.zeros(8, 8), torch.zeros(8, 2, dtype=torch.uint8)
    return [residual, core, choice, torch.eye(8).unsqueeze(0), torch.eye(8).unsqueeze(0)]


def default(pattern: Pattern, dtype: torch.dtype, device: str) -> str:
    return choose_backend(pattern, dtype, torch.device(device)).name


def test_default_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default(TWO_OF_FOUR, torch.float32, "cpu") == "numba"
    assert default(TWO_OF_FOUR, torch.float64, "cpu") == "numba"
    assert default(TWO_OF_FOUR, torch.float32, "mps") == "torch"
    monkeypatch.setattr(triton, "is_available", lambda: True)
    assert default(TWO_OF_FOUR, torch.float32, "cuda") == "triton"
    monkeypatch.setattr(triton, "is_available", lambda: False)
    assert default(TWO_OF_FOUR, torch.float32, "cuda") == "torch"


@pytest.mark.parametrize("text", ["1:4", "4:8", "50%"])
def test_default_backends_of_other_patterns(text: str) -> None:
    pattern = Pattern.parse(text)
    assert default(pattern, torch.float32, "cpu") == "numba_masks"
    assert default(pattern, torch.float64, "cpu") == "torch_masks"
    assert default(pattern, torch.float32, "cuda") == "torch_masks"


@pytest.mark.parametrize("backend", ["triton", "numba", "torch"])
def test_a_backend_refuses_a_pattern_it_does_not_run(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "is_available", lambda: True)
    with pytest.raises(ArmorError, match=r"pattern 4:8 in float32 on cpu; valid: numba_masks"):
        sweep(*arguments(), pattern=Pattern.parse("4:8"), backend=backend)


def test_a_backend_refuses_a_dtype_it_does_not_run() -> None:
    wide = [each.double() if each.is_floating_point() else each for each in arguments()]
    with pytest.raises(ArmorError, match=r"numba_masks does not run .* float64"):
        sweep(*wide, pattern=Pattern.parse("4:8"), backend="numba_masks")
    with pytest.raises(ArmorError, match=r"bfloat16 on cpu; valid: none"):
        choose_backend(TWO_OF_FOUR, torch.bfloat16, torch.device("cpu"))


def test_a_price_needs_a_backend_that_knows_it() -> None:
    with pytest.raises(ArmorError, match="numba of the sweep knows no price"):
        sweep(*arguments(), price=torch.tensor(1.0))


def test_a_backend_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "is_available", lambda: False)
    with pytest.raises(ArmorError, match="pip install triton"):
        sweep(*arguments(), backend="triton")


def test_an_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(ArmorError, match=", ".join(each.name for each in BACKENDS)):
        sweep(*arguments(), backend="fortran")


@pytest.mark.parametrize("backend", [None, "numba", "torch"])
def test_sweep_updates_in_place(backend: str | None) -> None:
    residual, core, choice, left, right = arguments()
    residual[:, 3] = 5.0
    residual[:, 1] = -3.0
    sweep(residual, core, choice, left, right, backend=backend)
    expected = torch.tensor([0.0, -3.0, 0.0, 5.0, 1.0, 1.0, 0.0, 0.0]).expand(8, 8)
    torch.testing.assert_close(core, expected)
    assert choice.tolist() == [[4, 0]] * 8


def test_pair_inverses_match_the_reference() -> None:
    draw = torch.Generator().manual_seed(0)
    factor = torch.randn(3, 12, 12, generator=draw, dtype=torch.float64)
    factor[0, 5] = 0.0  # a dead channel
    factor[1, 1] = factor[1, 0]  # a singular pair
    factor[2, :4] = 0.0  # a dead group
    gram = factor @ factor.mT
    found = pair_inverses(gram)
    for number in range(3):
        expected = reference.pair_inverses(gram[number].numpy())
        np.testing.assert_allclose(found[number].numpy(), expected, rtol=1e-12)


def test_choice_and_mask_are_inverse() -> None:
    choice = torch.arange(6, dtype=torch.uint8).repeat(2).view(3, 4)
    mask = mask_from_choice(choice)
    assert mask.shape == (3, 16)
    assert (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert torch.equal(choice_from_mask(mask), choice)
