"""Every backend of the sweep against the plain NumPy one, from the same state."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import get_num_threads, set_num_threads
from torch import Tensor

from armor.baselines.nowag import nowag
from armor.factorize import sweep as sweep_module
from armor.factorize.exact import factorize
from armor.factorize.kernels import reference, triton
from armor.factorize.kernels.rows import ROWS_TOGETHER
from armor.factorize.masks import mask_from_choice
from armor.factorize.problem import Problem
from armor.factorize.sweep import BACKENDS as BACKENDS_OF_SWEEP
from armor.factorize.sweep import sweep

needs_triton = pytest.mark.skipif(not triton.is_available(), reason="triton is not installed")
#: Where Triton runs; tests/conftest.py has it interpreted where there is no GPU.
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

BACKENDS = [
    ("numba", "cpu"),
    ("torch", "cpu"),
    pytest.param("triton", TRITON_DEVICE, marks=needs_triton),
]
if torch.cuda.is_available():
    BACKENDS.append(("torch", "cuda"))


@dataclass(frozen=True)
class Case:
    """A state to sweep from: the arguments of `sweep`, and the linear term C of what it lowers."""

    residual: Tensor
    core: Tensor
    choice: Tensor
    left: Tensor
    right: Tensor
    linear: Tensor

    def to(self, device: str, dtype: torch.dtype) -> "Case":
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)

        return Case(*(moved(getattr(self, name)) for name in self.__dataclass_fields__))

    def swept(self, backend: str) -> "Case":
        new = self.to(str(self.core.device), self.core.dtype)
        sweep(new.residual, new.core, new.choice, new.left, new.right, backend=backend)
        assert torch.equal(new.residual, self.residual)
        return new.to("cpu", self.core.dtype)

    def swept_by_reference(self, backend: str) -> "Case":
        together = 1 if backend == "numba" else ROWS_TOGETHER
        new = self.to("cpu", self.core.dtype)
        size = new.left.shape[1]
        for i in range(len(new.left)):
            for j in range(len(new.right)):
                rows, cols = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
                codes = slice(j * size // 4, (j + 1) * size // 4)
                reference.sweep_block(
                    new.residual[rows, cols].numpy(),
                    new.core[rows, cols].numpy(),
                    new.choice[rows, codes].numpy(),
                    new.left[i].numpy(),
                    new.right[j].numpy(),
                    together,
                )
        return new

    def left_over(self) -> Tensor:
        """``C - G S H``, in float64."""
        size = self.left.shape[1]
        blocks = self.core.double().unflatten(0, (-1, size)).unflatten(2, (-1, size))
        image = torch.einsum("irs,isjc->irjc", self.left.double(), blocks)
        image = torch.einsum("irjc,jcd->irjd", image, self.right.double())
        return self.linear.double() - image.reshape(self.core.shape)

    def quadratic(self) -> float:
        """``sum over blocks of tr(S^T G S H) - 2 tr(S^T C)``."""
        return float(-(self.core.double() * (self.left_over() + self.linear.double())).sum())


def make_case(row_blocks: int, col_blocks: int, size: int, seed: int, quirk: str = "none") -> Case:
    """A random state in float64, 2:4, with the residual that belongs to it."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    a, b = normal(row_blocks, size, size), normal(col_blocks, size, size)
    if quirk == "dead":  # rows of B and columns of A that are zero, a whole group among them
        b[:, :5] = 0.0
        b[:, -1] = 0.0
        a[:, :, 2] = 0.0
    elif quirk == "singular":  # equal rows inside a group and across groups
        b[:, 1] = b[:, 0]
        b[:, 5] = b[:, 0]
        b = b[:, :, : size // 2]
    left, right = a.mT @ a, b @ b.mT
    choice = torch.randint(0, 6, (row_blocks * size, col_blocks * size // 4), generator=draw)
    choice = choice.to(torch.uint8)
    core = normal(row_blocks * size, col_blocks * size) * mask_from_choice(choice)
    weight = 3 * normal(row_blocks * size, col_blocks * b.shape[2])
    # C = A^T W B^T, as it arises: orthogonal to the null spaces of G and H.
    rows = torch.bmm(a.mT, weight.view(row_blocks, size, -1)).view(
        row_blocks * size, col_blocks, -1
    )
    linear = torch.einsum("rjk,jck->rjc", rows, b).reshape(core.shape)
    case = Case(linear, core, choice, left, right, linear)
    return replace(case, residual=case.left_over())


def assert_same(found: Case, expected: Case, tolerance: float) -> None:
    """The same masks and values; or, after a tie, at least the same value of the quadratic."""
    if torch.equal(found.choice, expected.choice):
        scale = float(expected.core.abs().max())
        torch.testing.assert_close(
            found.core, expected.core, rtol=tolerance, atol=tolerance * scale
        )
    else:
        assert found.quadratic() == pytest.approx(expected.quadratic(), rel=tolerance)
    assert not (found.core * ~mask_from_choice(found.choice)).any()


CASES = [
    (1, 1, 8, "none"),
    (2, 3, 8, "dead"),
    (3, 2, 8, "singular"),
    (2, 2, 12, "none"),  # lanes that no group fills; rows that no panel fills
    (1, 2, 16, "dead"),
    (2, 1, 20, "singular"),
    (1, 1, 4, "none"),
]


@pytest.mark.parametrize(("row_blocks", "col_blocks", "size", "quirk"), CASES)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=str
)
def test_one_sweep_matches_the_reference(
    backend: str,
    device: str,
    row_blocks: int,
    col_blocks: int,
    size: int,
    quirk: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    case = make_case(row_blocks, col_blocks, size, seed=size, quirk=quirk).to(device, dtype)
    expected = case.swept_by_reference(backend)
    assert expected.quadratic() < case.to("cpu", dtype).quadratic()
    assert_same(case.swept(backend), expected, tolerance)


@pytest.mark.skipif(TRITON_DEVICE == "cuda", reason="compiled, with one order of the axes")
@needs_triton
@pytest.mark.parametrize(("row_blocks", "col_blocks", "size", "quirk"), CASES)
def test_tiles_of_triton_may_have_their_lanes_first_or_last(
    row_blocks: int, col_blocks: int, size: int, quirk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton.language as tl

    case = make_case(row_blocks, col_blocks, size, seed=size, quirk=quirk)
    found = []
    for lane in (0, 2):
        monkeypatch.setattr(triton, "LANE", tl.constexpr(lane))
        found.append(case.swept("triton"))
    assert_same(found[0], case.swept_by_reference("triton"), 1e-9)
    assert torch.equal(found[0].core, found[1].core)


@needs_triton
def test_a_block_of_any_size_can_be_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU starts 32 warps of a program at most, whatever --block-size says."""
    launched: list[int] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> "Kernel":
            return self

        def __call__(self, *arguments: object, num_warps: int, **constants: int) -> None:
            launched.append(num_warps)

    monkeypatch.setattr(triton, "_sweep", Kernel())
    for size in (8, 128, 512, 1024, 4096):
        square = torch.zeros(1, size, size, device="meta")
        codes = torch.zeros(size, size // 4, dtype=torch.uint8, device="meta")
        inverses = torch.zeros(1, size // 4, 6, 3, device="meta")
        triton.sweep(square[0], square[0], codes, square, square, inverses)
    assert launched == [1, 8, 16, 16, 16]


@pytest.mark.skipif(TRITON_DEVICE == "cpu", reason="needs a GPU: too slow interpreted")
@needs_triton
@pytest.mark.parametrize("size", [32, 64, 128])
def test_triton_on_real_sizes(size: int) -> None:
    """Many programs of several warps at once, against plain torch."""
    for quirk in ("none", "dead", "singular"):
        for shape in ((1, 1), (5, 3), (40, 33)):
            case = make_case(*shape, size, seed=size, quirk=quirk)
            expected = case.swept("torch")
            found = case.to("cuda", torch.float64).swept("triton")
            assert_same(found, expected, 1e-8)
            found = case.to("cuda", torch.float32).swept("triton")
            assert found.quadratic() == pytest.approx(expected.quadratic(), rel=1e-4)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@given(
    row_blocks=st.integers(1, 3),
    col_blocks=st.integers(1, 3),
    groups=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    quirk=st.sampled_from(["none", "dead", "singular"]),
)
@settings(max_examples=15)
def test_random_shapes(
    backend: str, row_blocks: int, col_blocks: int, groups: int, seed: int, quirk: str
) -> None:
    if groups < 2:
        quirk = "none"
    case = make_case(row_blocks, col_blocks, 4 * groups, seed, quirk)
    found = case.swept(backend)
    assert_same(found, case.swept_by_reference(backend), 1e-8)
    before = case.quadratic()
    assert found.quadratic() <= before + 1e-10 * abs(before)
    again = replace(found, residual=found.left_over())
    assert again.swept(backend).quadratic() <= found.quadratic() + 1e-10 * abs(before)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_a_tie_with_the_held_pair_moves_nothing(backend: str, device: str) -> None:
    """Six equal gains: a group leaves its pair and its values only for something better."""
    eye = torch.eye(8).unsqueeze(0)
    choice = torch.tensor([[4, 2]], dtype=torch.uint8).repeat(8, 1)
    core = mask_from_choice(choice).float()
    case = Case(1 - core, core, choice, eye, eye, torch.ones(8, 8)).to(device, torch.float32)
    found = case.swept(backend)
    assert torch.equal(found.core, core)
    assert torch.equal(found.choice, choice)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_columns_of_a_larger_matrix(backend: str, device: str) -> None:
    """Slices of wider matrices, as the full objective has them, are updated in place."""
    case = make_case(2, 1, 8, seed=1).to(device, torch.float64)
    wide = torch.zeros(16, 24, device=device, dtype=torch.float64)
    codes = torch.zeros(16, 6, device=device, dtype=torch.uint8)
    core, choice = wide[:, 8:16], codes[:, 2:4]
    core.copy_(case.core)
    choice.copy_(case.choice)
    sweep(case.residual.clone(), core, choice, case.left, case.right, backend=backend)
    expected = case.swept(backend)
    torch.testing.assert_close(core.cpu(), expected.core)
    assert torch.equal(choice.cpu(), expected.choice)
    assert not wide[:, :8].any()
    assert not wide[:, 16:].any()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("backend", "device"), BACKENDS[1:])
def test_the_solver_ends_at_the_same_loss(
    backend: str, device: str, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few iterations of the exact solver: on Numba row by row, else by sets of rows."""
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(16, 24, generator=draw, dtype=torch.float64)
    inputs = torch.randn(90, 24, generator=draw, dtype=torch.float64)
    moment = inputs.T @ inputs
    expected = Problem(target, moment if full else moment.diagonal().contiguous())
    found = Problem(expected.target.to(device), expected.moment.to(device))
    _, losses = factorize(expected, 8, [nowag(expected)], iterations=3)
    by_sets = []
    for name in ("torch", backend):
        only = [each for each in BACKENDS_OF_SWEEP if each.name == name]
        monkeypatch.setattr(sweep_module, "BACKENDS", only)
        by_sets.append(factorize(found, 8, [nowag(found)], iterations=3)[1])
        assert by_sets[-1] == sorted(by_sets[-1], reverse=True)
    assert by_sets[1] == pytest.approx(by_sets[0], rel=1e-8)
    assert by_sets[1] == pytest.approx(losses, rel=0.1)


def coupled_rows() -> Case:
    """Rows that all miss the same: each alone would correct it, two would undo each other's."""
    case = make_case(1, 1, 8, seed=0)
    left = torch.ones(1, 8, 8, dtype=torch.float64) + 0.1 * torch.eye(8, dtype=torch.float64)
    core, right = torch.zeros_like(case.core), torch.eye(8, dtype=torch.float64).unsqueeze(0)
    linear = torch.ones_like(core)
    return Case(linear, core, case.choice, left, right, linear)


@pytest.mark.parametrize(("backend", "device"), BACKENDS[1:])
def test_rows_that_move_together_never_raise_it(backend: str, device: str) -> None:
    case = coupled_rows().to(device, torch.float64)
    found, expected = case.swept(backend), case.swept_by_reference(backend)
    assert torch.equal(found.core, expected.core)
    assert found.quadratic() < case.to("cpu", torch.float64).quadratic()
    moved = (found.core != 0).any(1)
    assert moved.tolist() == [True] + [False] * 7


@needs_triton
@pytest.mark.parametrize(
    ("size", "row_blocks", "programs", "each"),
    [
        (128, 300, 300, 1),  # a block fills the warps of a program by itself
        (32, 215, 215, 1),
        (32, 217, 109, 2),
        (16, 431, 216, 2),  # four to a program would leave processors idle
        (16, 432, 108, 4),
        (8, 865, 109, 8),
        (8, 1, 1, 1),
    ],
)
def test_blocks_share_programs_where_every_processor_has_one(
    size: int, row_blocks: int, programs: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an A100, which has 108."""
    launched: list[tuple[int, int, int]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            return lambda *_, BLOCKS, num_warps, **__: launched.append((*grid, BLOCKS, num_warps))

    monkeypatch.setattr(triton, "_sweep", Kernel())
    monkeypatch.setattr(triton, "_processors", lambda _: 108)
    rows = row_blocks * size
    core, left, right, inverses = (
        torch.empty(shape, device="meta")
        for shape in ((rows, size), (row_blocks, size, size), (1, size, size), (1, size // 4, 6, 3))
    )
    choice = torch.empty(rows, size // 4, dtype=torch.uint8, device="meta")
    triton.sweep(core, core, choice, left, right, inverses)
    assert launched == [(programs, each, max(1, each * ROWS_TOGETHER * size // 4 // 32))]


@pytest.mark.parametrize("row_blocks", [5, 16, 37])
def test_lanes_and_threads_do_not_matter(row_blocks: int) -> None:
    case = make_case(row_blocks, 1, 12, 3).to("cpu", torch.float32)
    together = case.swept("numba")
    held = get_num_threads()
    try:
        set_num_threads(1)
        assert torch.equal(case.swept("numba").core, together.core)
    finally:
        set_num_threads(held)
    for i in range(row_blocks):
        rows = slice(12 * i, 12 * i + 12)
        alone = Case(
            case.residual[rows],
            case.core[rows],
            case.choice[rows],
            case.left[i : i + 1],
            case.right,
            case.linear[rows],
        ).swept("numba")
        assert torch.equal(alone.core, together.core[rows])
        assert torch.equal(alone.choice, together.choice[rows])
